"""Looking up values in what a user's module returns, and describing them in error messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor


def look_up(where: str | Callable[[Any], Tensor], owner: str, value: Any) -> Any:
    """Follow a path of keys, attributes and positions into a value, or call a function on it.

    Raises:
        LookupError: a step of the path is not there; the message names it and what there is.
    """
    if callable(where):
        return where(value)
    if isinstance(value, Mapping) and where in value:
        return value[where]
    for step in where.split("."):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, Sequence) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        elif not isinstance(value, Mapping) and hasattr(value, step):
            value = getattr(value, step)
        else:
            raise LookupError(f"{owner} has no {where!r}: no {step!r} in {describe(value)}")
    return value


def describe(value: Any) -> str:
    """A value in an error message: type with shape, keys or length."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict with keys {', '.join(map(str, value)) or 'none'}"
    if isinstance(value, Sequence):
        return f"a {type(value).__name__} of length {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"
