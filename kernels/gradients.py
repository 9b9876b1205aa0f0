"""Ops without a derivative, which say so where one is asked for."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

P = ParamSpec("P")
R = TypeVar("R")


def without_gradient(op: Callable[P, R]) -> Callable[P, R]:
    """Run an op under `no_grad`, but refuse inputs whose gradient somebody waits for: a loss would train without it."""

    @wraps(op)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.is_grad_enabled() and any(map(is_tracked, tensors((args, tuple(kwargs.values()))))):
            raise ValueError(
                f"{op.__name__} has no gradient, and one of its inputs requires one; pass it as .detach(), or call "
                f"{op.__name__} under torch.no_grad()"
            )
        with torch.no_grad():
            return op(*args, **kwargs)

    return checked


def tensors(value: Any) -> Iterable[Tensor]:
    """The tensors among arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)


def is_tracked(value: Tensor) -> bool:
    """Whether a derivative is taken, backward (`requires_grad`, `torch.func.grad`) or forward (`torch.func.jvp`)."""
    return value.requires_grad or forward_ad.unpack_dual(value).tangent is not None
