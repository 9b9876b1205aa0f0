"""`counterparts` as PyTorch knows it: an operator with shapes for tracing and a derivative."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..dispatch import Backends
from ..operators import Operator
from . import reference
from . import torch as streaming
from .gradient import counterparts_gradient


def _load_triton() -> Callable[..., Tensor]:
    from . import triton

    return triton.counterparts


def _load_triton_gradient() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    from . import triton

    return triton.counterparts_gradient


BACKENDS = Backends(reference.counterparts, streaming.counterparts, _load_triton)
# The reference has autograd's.
GRADIENTS = Backends(counterparts_gradient, counterparts_gradient, _load_triton_gradient)


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
    run = BACKENDS.choose(backend, x.device)
    check_values(x, u, g)
    if not len(x):
        return x.new_empty(x.shape)
    return run(x.contiguous(), u, g, epsilon=epsilon, normalize=normalize, similarity_weight=similarity_weight)


def run_gradient(
    grad: Tensor,
    x: Tensor,
    u: Tensor,
    g: Tensor,
    epsilon: float,
    normalize: bool,
    similarity_weight: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in x, u and g."""
    run = GRADIENTS.choose(backend, x.device)
    if not len(x):
        return x.new_empty(x.shape), u.new_zeros(u.shape), torch.zeros_like(g)
    return run(grad, x.contiguous(), u, g, epsilon=epsilon, normalize=normalize, similarity_weight=similarity_weight)


def _fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _fake_gradient(grad: Tensor, x: Tensor, u: Tensor, g: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), u.new_empty(u.shape), g.new_empty(g.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *gradient(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None


# The gradient is an operator of its own, so that a compiled graph holds it whole.
gradient = Operator("counterparts_gradient", run_gradient, fake=_fake_gradient)
operator = Operator("counterparts", run_checked, fake=_fake, setup_context=_setup_context, backward=_backward)
