"""`cae report`, and the page beside a result that has changed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from cae.cli import terminal
from cae.cli.options import Images, MaxPixels, Quiet, ResultFolder


def report(
    result: ResultFolder,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where the page goes; by default RESULT/report.")
    ] = None,
    images: Images = None,
    compare: Annotated[
        Path | None, typer.Option(help="Another result: show what lies elsewhere there.", metavar="OTHER")
    ] = None,
    max_pixels: MaxPixels = None,
    quiet: Quiet = False,
) -> None:
    """Draw a result as a page that opens from disk: groups, a map, and why each picture is where it is."""
    terminal.note_loading(quiet=quiet)
    from cae.api import Result

    drawn = Result(result, images=images)
    page = drawn.report(out, compare_with=compare, progress=not quiet)
    terminal.print_missing(drawn.saved.missing(), fate="shown as gaps")
    terminal.print_unmatched_edits(drawn.saved)
    if not quiet:
        terminal.out.print(f"report: {page}", soft_wrap=True, highlight=False)


def redraw(result: Path, *, report: bool, images: Path | None = None, quiet: bool = False) -> None:
    """Bring the page beside a result up to date, or say that it is old; without a page do nothing."""
    from cae.report import REPORT_FOLDER, has_report, redraw_report

    if not report:
        if has_report(result):
            command = shlex.join(["cae", "report", str(result)])
            terminal.warn(f"the page in {result / REPORT_FOLDER} does not show this yet; to draw it again: {command}")
        return
    with terminal.progress_bars(quiet=quiet) as reporter:
        page = redraw_report(result, reporter, images=images)
    if page and not quiet:
        terminal.out.print(f"report: {page}", soft_wrap=True, highlight=False)
