"""What the terminal shows while work is done: plain text, and a bar for everything that reports."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.errors import LiveError
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from cae.utils.words import one_line

if TYPE_CHECKING:  # needs torch, which `cae --help` should not wait for
    from cae.utils.progress import Report, Reporter

WIDE = 10_000
"""Columns where no screen sets them: a row of a table stays one line in a file or a pipe."""


class PlainConsole(Console):
    """Prints texts as they are: names, nouns and paths are no markup, and give the terminal no orders."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Text in one line, see `one_line`: a cell of a table, an error or a warning breaks nothing."""
        return super().render_str(one_line(text), **options)


out = PlainConsole()
if not out.is_terminal and "COLUMNS" not in os.environ:
    out.width = WIDE
err = PlainConsole(stderr=True)


class WarningLines(logging.Handler):
    """Shows what our modules warn of as the command line shows its own warnings, above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line for a record."""
        err.print(record.getMessage(), style="yellow", highlight=False, soft_wrap=True)


class _Standing(ProgressColumn):
    """Shows `done/total` and the rate, or a note where counts mean nothing."""

    def render(self, task: Task) -> Text:
        if task.fields["note"]:
            return Text(task.fields["note"])
        speed = task.finished_speed or task.speed
        of = "?" if task.total is None else f"{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}/{of}" + (f"  {speed:,.0f}/s" if speed else ""))


def at_first_use(reporter: Reporter, what: str) -> Report:
    """A bar that shows once there is something to report: nothing for what is in the cache."""
    report: list[Report] = []

    def first(done: float, total: float, note: str = "") -> None:
        if not report:
            report.append(reporter(what))
        report[0](done, total, note)

    return first


@contextmanager
def progress_bars(*, quiet: bool = False) -> Iterator[Reporter]:
    """A bar for everything that reports; on the error stream, so that results can be piped.

    Bars move on a screen only: in a file or a pipe each piece of work gets a line as it begins, and its bar at the end.
    """
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        _Standing(),
    )
    progress = Progress(*columns, console=err, disable=quiet)

    def reporter(what: str) -> Report:
        if not (quiet or err.is_terminal or err.is_jupyter):
            err.print(f"{what} …", highlight=False)
        try:
            progress.start()  # only now, so that an error before any work is shown without a bar
        except LiveError:  # another bar has the screen, as a Trainer's
            err.print(f"{what} …", highlight=False)
        task = progress.add_task(what, total=None, note="")

        def report(done: float, total: float, note: str = "") -> None:
            # Work that notes its progress may not know yet how far it is: then the bar pulses.
            progress.update(task, completed=done, total=total if done or not note else None, note=one_line(note))

        return report

    try:
        yield reporter
    finally:
        if progress.tasks:
            progress.stop()
