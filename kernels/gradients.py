"""What the derivatives of the ops share: whether one is asked for, and that it is the first."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_tracked(*tensors: Tensor) -> bool:
    """Whether a derivative is taken: backward (`requires_grad`, `torch.func.grad`) or forward (`torch.func.jvp`)."""
    return torch.is_grad_enabled() and any(
        value.requires_grad or forward_ad.unpack_dual(value).tangent is not None for value in tensors
    )


def first_derivative(run: Callable[..., Any], op: str, *args: Any) -> Any:
    """`run(*args)`, the gradient of `op`: tensors at the top level of the arguments."""
    if torch.compiler.is_compiling():  # a graph has no second derivative, and Dynamo can't follow a Function in another
        return run(*args)
    return _FirstDerivative.apply(run, op, *args)


class _FirstDerivative(torch.autograd.Function):
    """Run a gradient's operator, and refuse to differentiate it again.

    It stands around the operator because torch.func's transforms refuse a bare one, and because a second derivative
    would otherwise fail without a name.
    """

    @staticmethod
    def forward(run: Callable[..., Any], op: str, *args: Any) -> Any:
        """`op` is named in the error."""
        return run(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the name."""
        ctx.op = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        """There is none."""
        raise NotImplementedError(
            f"{ctx.op} has a first derivative only; pass create_graph=False, or backend='reference' for small inputs"
        )
