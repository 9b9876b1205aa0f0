"""`counterparts` as PyTorch sees it: an operator with shapes for tracing and a derivative."""

from typing import Any

import torch
from torch import Tensor

from cae.kernels import checks
from cae.kernels.counterparts.gradient import counterparts_gradient
from cae.kernels.dispatch import Backend, implementation
from cae.kernels.exact import exact_products
from cae.kernels.gradients import first_derivative, is_tracked
from cae.kernels.tracing import is_traced


def check_values(x: Tensor, u: Tensor, g: Tensor) -> None:
    """What only the numbers can tell: they are there when the operator runs, and not when it is traced."""
    for name, matrix in (("x", x), ("u", u)):
        checks.finite(name, matrix)
        checks.unit_rows(name, matrix)
    checks.log_weights("g", g, u.shape[0], "u", u)


def run_checked(
    x: Tensor, u: Tensor, g: Tensor, epsilon: float, normalize: bool, similarity_weight: bool, backend: str
) -> Tensor:
    """The public op; shapes and dtypes as checked there."""
    kind: Backend = backend  # type: ignore[assignment]  # `implementation` checks the name; a schema knows str alone
    run = implementation("counterparts", "counterparts", kind, x.device)
    check_values(x, u, g)
    if not len(x):
        return torch.empty_like(x)
    return run(x.contiguous(), u, g, epsilon=epsilon, normalize=normalize, similarity_weight=similarity_weight)


operator = torch.library.custom_op("cae::counterparts", run_checked, mutates_args=())


@operator.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("cae::counterparts_gradient", mutates_args=())
def gradient(
    grad: Tensor, x: Tensor, u: Tensor, g: Tensor, epsilon: float, normalize: bool, similarity_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """An operator of its own, so that a compiled graph holds it whole."""
    with exact_products(x.device):
        return counterparts_gradient(
            grad, x.contiguous(), u, g, epsilon=epsilon, normalize=normalize, similarity_weight=similarity_weight
        )


@gradient.register_fake
def _(grad: Tensor, x: Tensor, u: Tensor, g: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), u.new_empty(u.shape), g.new_empty(g.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:6]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    args = (grad, *ctx.saved_tensors, *ctx.options)
    return *first_derivative(gradient, "counterparts", *args), None, None, None, None


operator.register_autograd(_backward, setup_context=_remember)


def apply(*args: Any) -> Tensor:
    """The operator, differentiable wherever it is called."""
    # Dynamo takes a bare operator and torch.func takes it within a Function, neither takes the other; and either costs
    # a small op half of its time, so that without a graph or a derivative there is none of them.
    if torch.compiler.is_compiling():
        return operator(*args)
    return (_Function.apply if is_tracked(*args[:3]) else _run)(*args)


def _run(*args: Any) -> Tensor:
    return (operator if is_traced(args[0]) else run_checked)(*args)


class _Function(torch.autograd.Function):
    """The operator under torch.func's transforms too, which refuse derivatives that are registered with an operator."""

    setup_context = staticmethod(_remember)
    backward = staticmethod(_backward)

    @staticmethod
    def forward(*args: Any) -> Tensor:
        """Arguments of the operator."""
        return _run(*args)
