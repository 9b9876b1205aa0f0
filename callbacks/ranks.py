"""Communication between the callbacks of several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch.distributed as dist

T = TypeVar("T")


def gather(trainer: pl.Trainer, value: T) -> list[T]:
    """Every rank's value in the order of ranks on rank 0, nothing on the others; all ranks must call it."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    dist.gather_object(value, values if trainer.is_global_zero else None)
    return values if trainer.is_global_zero else []


def on_rank_zero(trainer: pl.Trainer, work: Callable[[], T]) -> T:
    """Run `work` on rank 0 and hand its result to every rank; all ranks must call it.

    Raises:
        Exception: what `work` raised on rank 0, and a RuntimeError that quotes it on the others, so that none waits.
    """
    result, error = None, None
    if trainer.is_global_zero:
        try:
            result = work()
        except Exception as caught:
            error = caught
    result, failure = trainer.strategy.broadcast((result, error and repr(error)))
    if error is not None:
        raise error
    if failure is not None:
        raise RuntimeError(f"rank 0 failed: {failure}")
    return result  # type: ignore[return-value]  # `work` returned it, or there was an error
