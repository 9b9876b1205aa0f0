"""Where the time of a run goes, stage by stage."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_running: ContextVar[Counter[str] | None] = ContextVar("running", default=None)


@contextmanager
def stopwatch() -> Iterator[Counter[str]]:
    """Collect the seconds of every `stage` that runs inside, by its name."""
    seconds: Counter[str] = Counter()
    token = _running.set(seconds)
    try:
        yield seconds
    finally:
        _running.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the time inside, or of a decorated function, under `name`; free of cost without a `stopwatch` around it.

    A stage inside a stage belongs to the outer one, so that the stages add up to the whole.
    """
    seconds = _running.get()
    if seconds is None:
        yield
        return
    token = _running.set(None)
    start = _now()
    try:
        yield
    finally:
        _running.reset(token)
        seconds[name] += _now() - start  # type: ignore[assignment]  # typeshed's Counter holds whole numbers


def _now() -> float:
    """Seconds, after the work that was sent to the GPU is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
