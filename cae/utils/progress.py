"""Where the time of a run goes, stage by stage, and how far it is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")

ProgressListener = Callable[[str, float, str], None]
"""Called with the name of the running stage, the share of it in [0, 1] that is done, and a note."""

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


class Report(Protocol):
    """`Progress` that may come with a note."""

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Report `done` of `total`; where there is a note, show it in place of the numbers."""


Reporter = Callable[[str], Report]
"""Makes the progress callback of a piece of work by its name: `encoder`, `nouns`, `pictures`, `grouping`, …"""


def silent(_name: str) -> Report:
    """The `Reporter` that reports nothing."""
    return lambda done, total, note="": None


_running: ContextVar[Counter[str] | None] = ContextVar("running", default=None)
_listener: ContextVar[ProgressListener | None] = ContextVar("listener", default=None)
_report: ContextVar[Callable[[float, str], None] | None] = ContextVar("report", default=None)


@contextmanager
def stopwatch() -> Iterator[Counter[str]]:
    """Collect the seconds of every `stage` that runs inside, by its name."""
    seconds: Counter[str] = Counter()
    with _set(_running, seconds):
        yield seconds


def listen_to_progress(listener: ProgressListener) -> AbstractContextManager[None]:
    """Call `listener` for every `stage` that runs inside, and for what it reports with `report_progress`."""
    return _set(_listener, listener)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the time of a block, or of a decorated function, under `name`; free without a listener or stopwatch.

    A stage inside a stage belongs to the outer one, so that the stages add up to the whole.
    """
    seconds, listener = _running.get(), _listener.get()
    if seconds is None and listener is None:
        yield
        return
    with _set(_running, None), _set(_listener, None), _set(_report, partial(listener, name) if listener else None):
        report_progress(0, "")
        start = _now()
        try:
            yield
        finally:
            if seconds is not None:
                seconds[name] += _now() - start  # type: ignore[assignment]  # typeshed's Counter holds whole numbers
        report_progress(1, "")


def report_progress(share: float, note: str) -> None:
    """Report the progress of the running stage to the listener, if there is one."""
    report = _report.get()
    if report is not None:
        report(share, note)


@contextmanager
def _set(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _now() -> float:
    """Seconds, after the work that was sent to the GPU is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
