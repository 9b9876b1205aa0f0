"""SIGTERM, by which systems end a program, taken as Ctrl-C is: what is under way is closed and kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM has come."""


@contextmanager
def terminating_as_ctrl_c() -> Iterator[None]:
    """SIGTERM raises `Terminated` within the block; outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():  # only that one may say what signals do
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # Processes that read images get the signal, too, where it goes to all of a job; torch would raise for their end.
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, lambda *_: None)
    raise Terminated
