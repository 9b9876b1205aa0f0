"""The public op: its contract, its checks and its dispatch."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .. import checks
from ..dispatch import Backend
from ..operators import is_traced
from .acceleration import AndersonAcceleration
from .marginals import agree, marginal
from .operator import potentials, solve
from .solver import ConvergenceWarning, SinkhornResult
from .value import transport_value


def cosine_sinkhorn(
    x: Tensor,
    u: Tensor,
    *,
    epsilon: float,
    row_weights: Tensor | None = None,
    col_weights: Tensor | None = None,
    init: Tensor | None = None,
    max_iter: int = 1000,
    tol: float = 1e-3,
    balance: float = 1.0,
    acceleration: bool | AndersonAcceleration = True,
    group: ProcessGroup | None = None,
    callback: Callable[[int, float], None] | None = None,
    backend: Backend = "auto",
) -> SinkhornResult:
    r"""Potentials of the entropic transport plan between images and texts at cost c_ij = 1 - x_i·u_j.

    With row weights a and column weights b the plan is

        P_ij = a_i exp((f_i + g_j - c_ij) / epsilon),    sum_j P_ij = a_i,    sum_i P_ij = b_j    (Eq. 10-11)

    so g absorbs epsilon·log b, and a row of the plan scaled to 1 is t_ij = softmax_j((x_i·u_j + g_j) / epsilon): all
    that a new image needs is g. The rows are exact (f is the row update for the returned g); what is left over is the
    L1 error of the column sums, which stops the iteration. g is fixed up to a constant by sum_j b_j g_j = 0.

    With `balance` below 1 the columns need not sum to b: they are held to it by a penalty rho KL(columns | b), rho =
    epsilon·balance / (1 - balance) (unbalanced transport, Chizat et al. 2018), which multiplies each step's g by
    balance. Towards 0 a row becomes the softmax of its similarities, g = 0. Distances between potentials shrink by that
    factor in every iteration, also where clusters lie too far apart for mass to move between them.

    The iteration is Sinkhorn's (Cuturi 2013) on one product x·u per step, with Anderson acceleration of log v = g /
    epsilon (Walker & Ni 2011). Results are the same from run to run on one device. Scratch is bounded whatever N, but
    for the reference's (N, M) arrays.

    f, g and `value` are differentiable once in x, u and the weights, backward mode only and in bounded scratch; no
    iteration is unrolled. For the potentials the implicit function theorem leaves a linear system in M numbers, which
    conjugate gradients solve with one product x·u a step. For `value` there is none, by the envelope theorem: the
    potentials being at their optimum, its gradient is -P u in x, -P^T x in u, f in the row weights and, for balanced
    transport, g - epsilon·log b in the column weights. Gradients in weights are up to a constant, since these sum to 1.
    Those in x and u are of free rows, not held to unit length: apply `torch.nn.functional.normalize` before the op.
    What a gradient lacks is of the order of the marginal error: ask for a smaller `tol`.

    It can be compiled and exported: marginal_error, n_iter and converged are then tensors, an error that only values
    show comes when the graph runs, and there is no warning.

    Args:
        x: (N, D) image embeddings with unit rows; float32, float16 or bfloat16.
        u: (M, D) text embeddings with unit rows, dtype and device of x.
        epsilon: entropic regularisation, above 0.
        row_weights: (N,) non-negative, sum 1 (over the whole group); uniform if None. A row of weight 0 has an f.
        col_weights: (M,) non-negative, sum 1; uniform if None. A column of weight 0 has g = -inf.
        init: (M,) potentials g to start from. None: epsilon·log(col_weights), up to a constant; from there, where rows
            are many and on a CPU, those of a sample of the rows, always the same ones.
        max_iter: the most iterations, each of one product x·u or less.
        tol: stop at this L1 error of the column sums.
        balance: how firmly the columns are held to their weights, in (0, 1]; 1 is balanced transport.
        acceleration: Anderson's, with options if they are given; False gives the plain iteration, one exact Sinkhorn
            update a step.
        group: process group whose ranks each hold a shard of the rows and all columns; column sums are reduced over
            it, and every rank gets the same g. f and g are detached then. All ranks give the same options; whether
            weights and `init` are given is checked, and what one rank cannot use is an error on all. None: this process
            holds all rows, as it has to in a graph.
        callback: hears of each iteration: its number, from 1 on, and the L1 error of the column sums it found; not in a
            graph.
        backend: "reference" (dense float64, plain iteration), "torch", "triton", or "auto" by device.

    Returns:
        SinkhornResult(f (N,), g (M,), marginal_error, n_iter, converged, value); f and g float32, float64 from the
        reference. `value` is <P, C> + epsilon KL(P | a x b), float64; with `balance` below 1 plus the penalty, where
        KL to b in the first term is a constant: epsilon KL(P | a x 1) - epsilon <b, log b>.

    Raises:
        ValueError: a malformed argument.
        RuntimeError: a backend that cannot run here.

    Warns:
        ConvergenceWarning: the error is above `tol` after `max_iter` products; or, in the backward pass of f and g, the
            linear system is not solved to 1e-5 after 1000.

    Examples:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> x = normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), dim=1)
        >>> u = torch.eye(2)
        >>> plan = cosine_sinkhorn(x, u, epsilon=0.5, tol=1e-6)
        >>> cost = 1 - x @ u.T
        >>> P = torch.exp((plan.f[:, None] + plan.g - cost) / 0.5) / len(x)
        >>> P.sum(dim=0), plan.converged
        (tensor([0.5000, 0.5000]), True)
        >>> cosine_sinkhorn(x.requires_grad_(), u, epsilon=0.5, tol=1e-6).value.backward()
        >>> torch.allclose(x.grad, -P @ u, atol=1e-4)
        True
        >>> cosine_sinkhorn(x, u, epsilon=0.5).g[0].backward()  # adds the potential's own gradient
        >>> x.grad.isfinite().all()
        tensor(True)
    """
    epsilon, tol, balance = checks.positive("epsilon", epsilon), checks.positive("tol", tol), _checked_balance(balance)
    max_iter = checks.count("max_iter", max_iter)
    agree(partial(_check_shapes, x, u, row_weights, col_weights, init), group, x)
    problem = (x, u, row_weights, col_weights, init, epsilon, max_iter, tol, balance, _numbers(acceleration), backend)
    with torch.no_grad():
        if is_traced(*problem):
            _refuse_in_graph(group=group, callback=callback)
            f, g, error, n_iter = solve(*problem)
            result = SinkhornResult(f, g, error, n_iter, error <= tol)
        else:
            f, g, error, n_iter = solve(*problem, group, callback)
            result = SinkhornResult(f, g, float(error), int(n_iter), float(error) <= tol)
            if not result.converged:
                warnings.warn(_not_converged(result, tol), ConvergenceWarning, stacklevel=2)
    a, b = marginal(row_weights, x, group), marginal(col_weights, u)
    value = transport_value(x, u, (f, g), (a, b), epsilon=epsilon, balance=balance, group=group)
    if group is None:
        f, g = potentials(x, u, a, b, f, g, epsilon, balance)
    return result._replace(f=f, g=g, value=value)


def _check_shapes(
    x: Tensor, u: Tensor, row_weights: Tensor | None, col_weights: Tensor | None, init: Tensor | None
) -> None:
    checks.matrix("x", x)
    checks.matrix("u", u)
    checks.alike("x", x, "u", u)
    for name, vector, points_name, points in (
        ("row_weights", row_weights, "x", x),
        ("col_weights", col_weights, "u", u),
        ("init", init, "u", u),
    ):
        if vector is not None:
            checks.vector(name, vector, points.shape[0], points_name, points)


def _checked_balance(balance: float) -> float:
    balance = checks.positive("balance", balance)
    if balance > 1:
        raise ValueError(f"balance: expected a number in (0, 1], got {balance!r}")
    return balance


def _numbers(acceleration: bool | AndersonAcceleration) -> list[float]:
    """Of the acceleration's options, none for the plain iteration."""
    if isinstance(acceleration, AndersonAcceleration):
        return acceleration.numbers
    return _DEFAULT.numbers if acceleration else []


def _refuse_in_graph(**options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name}: expected None inside a graph; call cosine_sinkhorn outside of it")


def _not_converged(result: SinkhornResult, tol: float) -> str:
    return (
        f"cosine_sinkhorn: marginal error {result.marginal_error:.3g} is above tol={tol:g} after {result.n_iter} "
        "iterations; raise max_iter, tol or epsilon"
    )


_DEFAULT = AndersonAcceleration()
