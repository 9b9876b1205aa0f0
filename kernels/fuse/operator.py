"""`fuse` as PyTorch knows it: an operator with shapes for tracing and a derivative."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..dispatch import Backends
from ..operators import Operator
from . import reference
from . import torch as streaming
from .gradient import fuse_gradient


def _load_triton() -> Callable[..., tuple[Tensor, Tensor]]:
    from . import triton

    return triton.fuse


def _load_triton_gradient() -> Callable[..., list[Tensor]]:
    from . import triton

    return triton.fuse_gradient


BACKENDS = Backends(reference.fuse, streaming.fuse, _load_triton)
# The reference has autograd's.
GRADIENTS = Backends(fuse_gradient, fuse_gradient, _load_triton_gradient)


def check_values(parts: Sequence[Tensor]) -> None:
    """What only the numbers can tell: they are there when the operator runs, and not when it is traced."""
    for i, part in enumerate(parts):
        checks.finite(f"parts[{i}]", part)


def run_checked(parts: list[Tensor], gamma: float, backend: str) -> tuple[Tensor, Tensor]:
    """The public op; shapes and dtypes as checked there."""
    run = BACKENDS.choose(backend, parts[0].device)
    check_values(parts)
    if not len(parts[0]):
        return parts[0].new_empty(parts[0].shape), parts[0].new_empty(0, len(parts), dtype=torch.float32)
    return run(tuple(part.contiguous() for part in parts), gamma=gamma)


def run_gradient(grad_z: Tensor, grad_beta: Tensor, parts: list[Tensor], gamma: float, backend: str) -> list[Tensor]:
    """Gradients in the parts."""
    run = GRADIENTS.choose(backend, parts[0].device)
    if not len(parts[0]):
        return [part.new_empty(part.shape) for part in parts]
    return run(grad_z, grad_beta, [part.contiguous() for part in parts], gamma=gamma)


def _fake(parts: list[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    first = parts[0]
    return first.new_empty(first.shape), first.new_empty(first.shape[0], len(parts), dtype=torch.float32)


def _fake_gradient(grad_z: Tensor, grad_beta: Tensor, parts: list[Tensor], *_: Any) -> list[Tensor]:
    return [part.new_empty(part.shape) for part in parts]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    parts, *ctx.options = inputs
    ctx.save_for_backward(*parts)


def _backward(ctx: Any, grad_z: Tensor, grad_beta: Tensor) -> tuple[Any, ...]:
    return list(gradient(grad_z, grad_beta, list(ctx.saved_tensors), *ctx.options)), None, None


# The gradient is an operator of its own, so that a compiled graph holds it whole.
gradient = Operator("fuse_gradient", run_gradient, fake=_fake_gradient)
operator = Operator("fuse", run_checked, fake=_fake, setup_context=_setup_context, backward=_backward)
