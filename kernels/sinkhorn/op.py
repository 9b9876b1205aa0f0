"""The public op: its contract, its checks and its dispatch."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cae.kernels import checks
from cae.kernels.dispatch import Backend, Backends
from cae.kernels.sinkhorn import reference
from cae.kernels.sinkhorn import torch as streaming
from cae.kernels.sinkhorn.acceleration import AndersonAcceleration
from cae.kernels.sinkhorn.marginals import marginal
from cae.kernels.sinkhorn.solver import ConvergenceWarning, SinkhornResult
from cae.kernels.sinkhorn.value import transport_value


def _load_triton() -> Callable[..., SinkhornResult]:
    from cae.kernels.sinkhorn import triton

    return triton.cosine_sinkhorn


BACKENDS = Backends(reference.cosine_sinkhorn, streaming.cosine_sinkhorn, _load_triton)


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
    epsilon (Walker & Ni 2011). Potentials are detached, results the same from run to run on one device. Scratch is
    bounded whatever N, but for the reference's (N, M) arrays.

    `value` is differentiable once in x, u and the weights, backward mode only and in bounded scratch. By the envelope
    theorem, the potentials being at their optimum, its gradient is -P u in x, -P^T x in u, f in the row weights and,
    for balanced transport, g - epsilon·log b in the column weights, both up to a constant since they sum to 1. What it
    lacks is of the order of the marginal error: ask for a smaller `tol`.

    Args:
        x: (N, D) image embeddings with unit rows; float32, float16 or bfloat16.
        u: (M, D) text embeddings with unit rows, dtype and device of x.
        epsilon: entropic regularisation, above 0.
        row_weights: (N,) non-negative, sum 1 (over the whole group); uniform if None. A row of weight 0 has an f.
        col_weights: (M,) non-negative, sum 1; uniform if None. A column of weight 0 has g = -inf.
        init: (M,) potentials g to start from; epsilon·log(col_weights), up to a constant, if None.
        max_iter: the most iterations, each of one product x·u or less.
        tol: stop at this L1 error of the column sums.
        balance: how firmly the columns are held to their weights, in (0, 1]; 1 is balanced transport.
        acceleration: Anderson's, with options if they are given; False gives the plain iteration, one exact Sinkhorn
            update a step.
        group: process group whose ranks each hold a shard of the rows and all columns; column sums are reduced over
            it, and every rank gets the same g. None: this process holds all rows.
        callback: hears of each iteration: its number, from 1 on, and the L1 error of the column sums it found.
        backend: "reference" (dense float64, plain iteration), "torch", "triton", or "auto" by device.

    Returns:
        SinkhornResult(f (N,), g (M,), marginal_error, n_iter, converged, value); f and g float32, float64 from the
        reference. `value` is <P, C> + epsilon KL(P | a x b), float64; with `balance` below 1 plus the penalty, where
        KL to b in the first term is a constant: epsilon KL(P | a x 1) - epsilon <b, log b>.

    Raises:
        ValueError: a malformed argument.
        RuntimeError: a backend that cannot run here.

    Warns:
        ConvergenceWarning: the error is above `tol` after `max_iter` products.

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
    """
    _check_points(x, u)
    epsilon, tol, balance = checks.positive("epsilon", epsilon), checks.positive("tol", tol), _checked_balance(balance)
    max_iter = checks.count("max_iter", max_iter)
    solve = BACKENDS.choose(backend, x.device)
    a, b = marginal("row_weights", row_weights, "x", x, group), marginal("col_weights", col_weights, "u", u)
    if init is not None:
        checks.vector("init", init, len(u), "u", u)
    # A text of weight 0 takes no part: the backends see only the others.
    active = b > 0
    if not active.all():
        u, b, init = u[active], b[active], None if init is None else init[active]
    if init is not None:
        checks.finite("init", init)
    with torch.no_grad():
        result = solve(
            x.detach(),
            u.detach(),
            epsilon=epsilon,
            row_weights=a.detach(),
            col_weights=b.detach(),
            init=None if init is None else init.detach(),
            max_iter=max_iter,
            tol=tol,
            balance=balance,
            acceleration=_options(acceleration),
            group=group,
            callback=callback,
        )
    value = transport_value(x, u, (result.f, result.g), (a, b), epsilon=epsilon, balance=balance, group=group)
    if not result.converged:
        warnings.warn(_not_converged(result, tol), ConvergenceWarning, stacklevel=2)
    g = result.g.new_full(active.shape, -torch.inf).masked_scatter(active, result.g)
    return result._replace(g=g, value=value)


def _check_points(x: Tensor, u: Tensor) -> None:
    checks.matrix("x", x)
    checks.matrix("u", u)
    checks.alike("x", x, "u", u)
    for name, matrix in (("x", x), ("u", u)):
        checks.finite(name, matrix)
        checks.unit_rows(name, matrix)


def _checked_balance(balance: float) -> float:
    balance = checks.positive("balance", balance)
    if balance > 1:
        raise ValueError(f"balance: expected a number in (0, 1], got {balance!r}")
    return balance


def _options(acceleration: bool | AndersonAcceleration) -> AndersonAcceleration | None:
    if isinstance(acceleration, AndersonAcceleration):
        return acceleration
    return AndersonAcceleration() if acceleration else None


def _not_converged(result: SinkhornResult, tol: float) -> str:
    return (
        f"cosine_sinkhorn: marginal error {result.marginal_error:.3g} is above tol={tol:g} after {result.n_iter} "
        "iterations; raise max_iter, tol or epsilon"
    )
