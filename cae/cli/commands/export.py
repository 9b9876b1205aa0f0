"""`cae export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cae.cli import terminal
from cae.cli.options import Images, Quiet, ResultFolder
from cae.utils.words import counted


def export(
    result: ResultFolder,
    to: Annotated[
        Literal["folders", "csv", "parquet", "json", "hf", "fiftyone", "coco"],
        typer.Option(help="hf: for Hugging Face datasets; fiftyone: FiftyOneImageClassificationDataset."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to put it in; by default cae-export/TO.")
    ] = None,
    by: Annotated[
        Literal["copy", "hardlink", "symlink"], typer.Option(help="How pictures get there; originals stay as they are.")
    ] = "copy",
    nested: Annotated[
        bool, typer.Option("--nested", help="With folders: groups inside the coarse groups that they are part of.")
    ] = False,
    without_duplicates: Annotated[
        bool, typer.Option("--without-duplicates", help="Of copies, as `cae duplicates` lists them, only the best.")
    ] = False,
    images: Images = None,
    quiet: Quiet = False,
) -> None:
    """Take a result away: pictures in folders named by meaning, tables, or a data set for other tools."""
    terminal.note_loading(quiet=quiet)
    from cae.api import Result

    saved = Result(result, images=images)
    place = out or Path("cae-export") / to
    without = saved.duplicates(progress=not quiet).rows if without_duplicates else ()
    done = saved.export(to, place, by=by, nested=nested, without=without, progress=not quiet)
    terminal.print_unmatched_edits(saved.saved)
    terminal.print_missing(done.missing)
    terminal.print_changed(done.changed)
    if not quiet:
        removed = f", {done.removed:,} of an earlier export removed" if done.removed else ""
        left_out = f", {counted(len(without), 'duplicate')} left out" if without_duplicates else ""
        terminal.out.print(
            f"{counted(done.written, 'file')} in {place}{removed}{left_out}", highlight=False, soft_wrap=True
        )
