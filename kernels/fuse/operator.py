"""`fuse` as PyTorch sees it: an operator with shapes for tracing and a derivative."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cae.kernels import checks
from cae.kernels.dispatch import Backend, implementation
from cae.kernels.exact import exact_products
from cae.kernels.fuse.gradient import fuse_gradient
from cae.kernels.gradients import first_derivative, is_tracked
from cae.kernels.tracing import is_traced


def check_values(parts: Sequence[Tensor]) -> None:
    """What only the numbers can tell: they are there when the operator runs, and not when it is traced."""
    for i, part in enumerate(parts):
        checks.finite(f"parts[{i}]", part)


def run_checked(parts: list[Tensor], gamma: float, backend: str) -> tuple[Tensor, Tensor]:
    """The public op; shapes and dtypes as checked there."""
    kind: Backend = backend  # type: ignore[assignment]  # `implementation` checks the name; a schema knows str alone
    run = implementation("fuse", "fuse", kind, parts[0].device)
    check_values(parts)
    if not len(parts[0]):
        return torch.empty_like(parts[0]), parts[0].new_empty(0, len(parts), dtype=torch.float32)
    return run(tuple(part.contiguous() for part in parts), gamma=gamma)


operator = torch.library.custom_op("cae::fuse", run_checked, mutates_args=())


@operator.register_fake
def _(parts: list[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    first = parts[0]
    return first.new_empty(first.shape), first.new_empty(first.shape[0], len(parts), dtype=torch.float32)


@torch.library.custom_op("cae::fuse_gradient", mutates_args=())
def gradient(grad_z: Tensor, grad_beta: Tensor, parts: list[Tensor], gamma: float) -> list[Tensor]:
    """An operator of its own, so that a compiled graph holds it whole."""
    with exact_products(parts[0].device):
        return fuse_gradient(grad_z, grad_beta, [part.contiguous() for part in parts], gamma=gamma)


@gradient.register_fake
def _(grad_z: Tensor, grad_beta: Tensor, parts: list[Tensor], gamma: float) -> list[Tensor]:
    return [part.new_empty(part.shape) for part in parts]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    parts, ctx.gamma, _ = inputs
    ctx.save_for_backward(*parts)


def _backward(ctx: Any, grad_z: Tensor, grad_beta: Tensor) -> tuple[Any, ...]:
    grads = first_derivative(_flat_gradient, "fuse", ctx.gamma, grad_z, grad_beta, *ctx.saved_tensors)
    return list(grads), None, None


def _flat_gradient(gamma: float, grad_z: Tensor, grad_beta: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    return tuple(gradient(grad_z, grad_beta, list(parts), gamma))


operator.register_autograd(_backward, setup_context=_remember)


def apply(parts: list[Tensor], gamma: float, backend: str) -> tuple[Tensor, Tensor]:
    """The operator, differentiable wherever it is called."""
    # Dynamo takes a bare operator and torch.func takes it within a Function, neither takes the other; and either costs
    # a small op half of its time, so that without a graph or a derivative there is none of them.
    if torch.compiler.is_compiling():
        return operator(parts, gamma, backend)
    if is_tracked(*parts):
        return _Function.apply(gamma, backend, *parts)
    return _run(parts, gamma, backend)


def _run(*args: Any) -> tuple[Tensor, Tensor]:
    return (operator if is_traced(args[0][0]) else run_checked)(*args)


class _Function(torch.autograd.Function):
    """The operator under torch.func's transforms too, which refuse derivatives that are registered with an operator."""

    @staticmethod
    def forward(gamma: float, backend: str, *parts: Tensor) -> tuple[Tensor, Tensor]:
        """Arguments of the operator, the parts last: a Function sees no tensors within a list."""
        return _run(list(parts), gamma, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the parts."""
        gamma, backend, *parts = inputs
        _remember(ctx, (parts, gamma, backend), output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in the parts."""
        return None, None, *_backward(ctx, *grads)[0]
