"""The potentials as PyTorch knows them: solved for without a derivative, which is put to the solution afterwards."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .. import checks
from ..dispatch import Backends
from ..operators import Operator
from . import reference
from . import torch as streaming
from .acceleration import AndersonAcceleration
from .gradient import potentials_gradient, row_gradient
from .marginals import agree, check_given_alike, check_sum, marginal
from .solver import SinkhornResult


def _load_triton() -> Callable[..., SinkhornResult]:
    from . import triton

    return triton.cosine_sinkhorn


BACKENDS = Backends(reference.cosine_sinkhorn, streaming.cosine_sinkhorn, _load_triton)


def run_checked(
    x: Tensor,
    u: Tensor,
    row_weights: Tensor | None,
    col_weights: Tensor | None,
    init: Tensor | None,
    epsilon: float,
    max_iter: int,
    tol: float,
    balance: float,
    acceleration: list[float],
    backend: str,
    group: ProcessGroup | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The public op without a derivative; shapes and dtypes as checked there, `acceleration` its numbers or empty.

    Returns:
        f, g and, on the CPU, marginal error and number of iterations.
    """
    run = BACKENDS.choose(backend, x.device)
    check_given_alike(group, x.device, row_weights=row_weights, col_weights=col_weights, init=init)
    agree(partial(_check_values, x, u, row_weights, col_weights, init), group, x)
    check_sum("row_weights", row_weights, group)
    a, b = marginal(row_weights, x, group), marginal(col_weights, u)
    # A text of weight 0 takes no part: the backends see only the others.
    active = b > 0
    if not active.all():
        u, b, init = u[active], b[active], None if init is None else init[active]
    result = run(
        x,
        u,
        epsilon=epsilon,
        row_weights=a,
        col_weights=b,
        init=init,
        max_iter=max_iter,
        tol=tol,
        balance=balance,
        acceleration=AndersonAcceleration.from_numbers(acceleration) if acceleration else None,
        group=group,
        callback=callback,
    )
    g = result.g.new_full(active.shape, -torch.inf).masked_scatter(active, result.g)
    error = torch.tensor(result.marginal_error, dtype=torch.float64, device="cpu")
    return result.f, g, error, torch.tensor(result.n_iter, device="cpu")


def _check_values(
    x: Tensor, u: Tensor, row_weights: Tensor | None, col_weights: Tensor | None, init: Tensor | None
) -> None:
    """What can be told of the values without the other ranks."""
    for name, matrix in (("x", x), ("u", u)):
        checks.finite(name, matrix)
        checks.unit_rows(name, matrix)
    for name, weights in (("row_weights", row_weights), ("col_weights", col_weights)):
        if weights is not None:
            checks.non_negative(name, weights)
    check_sum("col_weights", col_weights)
    if init is not None:  # a text of weight 0 takes no part
        checks.finite("init", init if col_weights is None else init[col_weights > 0])


# `run_checked` of what PyTorch's schemas know.
_SCHEMA = (
    "(Tensor x, Tensor u, Tensor? row_weights, Tensor? col_weights, Tensor? init, float epsilon, int max_iter, "
    "float tol, float balance, float[] acceleration, str backend) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _fake_solve(x: Tensor, u: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kind = torch.float64 if args[8] == "reference" else torch.float32
    error = torch.empty((), dtype=torch.float64, device="cpu")
    f, g = x.new_empty(x.shape[0], dtype=kind), u.new_empty(u.shape[0], dtype=kind)
    return f, g, error, torch.empty((), dtype=torch.int64, device="cpu")


def _copy_row_potentials(x: Tensor, u: Tensor, f: Tensor, g: Tensor, epsilon: float) -> Tensor:
    return f.clone()  # an operator must not return its input


def _fake_row_gradient(
    grad: Tensor, x: Tensor, u: Tensor, f: Tensor, g: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), u.new_empty(u.shape)


def _setup_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.epsilon = inputs[4]


def _rows_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *rows_gradient(grad, *ctx.saved_tensors, ctx.epsilon), None, None, None


def _copy_potentials(
    x: Tensor, u: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, epsilon: float, balance: float
) -> tuple[Tensor, Tensor]:
    return f.clone(), g.clone()


def _fake_potentials_gradient(
    grad_f: Tensor, grad_g: Tensor, x: Tensor, u: Tensor, a: Tensor, b: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), u.new_empty(u.shape), a.new_empty(a.shape), b.new_empty(b.shape)


def _setup_potentials(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _potentials_backward(ctx: Any, grad_f: Tensor, grad_g: Tensor) -> tuple[Tensor | None, ...]:
    grads = implicit_gradient(grad_f, grad_g, *ctx.saved_tensors, *ctx.options)
    return *grads, None, None, None, None


solve = Operator("cosine_sinkhorn", run_checked, fake=_fake_solve, schema=_SCHEMA)
rows_gradient = Operator("cosine_sinkhorn_rows_gradient", row_gradient, fake=_fake_row_gradient)
row_potentials = Operator(
    "cosine_sinkhorn_rows",
    _copy_row_potentials,
    fake=_copy_row_potentials,
    setup_context=_setup_rows,
    backward=_rows_backward,
)
"""f as it is, with its derivative in x and u while g stays."""
implicit_gradient = Operator("cosine_sinkhorn_potentials_gradient", potentials_gradient, fake=_fake_potentials_gradient)
potentials = Operator(
    "cosine_sinkhorn_potentials",
    _copy_potentials,
    fake=_copy_potentials,
    setup_context=_setup_potentials,
    backward=_potentials_backward,
)
"""f and g as they are, with their derivatives in x, u and the weights."""
