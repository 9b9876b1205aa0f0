"""What a person sees in the terminal: progress bars, tables, warnings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # needs torch, which `cae --help` should not wait for
    from cae.folder import FolderResult, Report, Reporter
    from cae.results import SavedResult

out = Console()
err = Console(stderr=True)

COLLAPSED = 0.99
"""Mean weight from which one modality is said to have taken over the fusion."""


SHOWN = 5
"""How many of a long list are named."""


class _Standing(ProgressColumn):
    """How many of how many and how many a second; or, where that says nothing, a note."""

    def render(self, task: Task) -> Text:
        if task.fields["note"]:
            return Text(task.fields["note"])
        speed = task.finished_speed or task.speed
        of = "?" if task.total is None else f"{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}/{of}" + (f"  {speed:,.0f}/s" if speed else ""))


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Reporter]:
    """A bar for everything that reports; on the error stream, so that results can be piped."""
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        _Standing(),
    )
    progress = Progress(*columns, console=err, disable=quiet)

    def reporter(what: str) -> Report:
        progress.start()  # only now: an error before any work should stand alone
        task = progress.add_task(what, total=None, note="")

        def report(done: float, total: float, note: str = "") -> None:
            # Work that notes its progress may not know yet how far it is: then the bar pulses.
            progress.update(task, completed=done, total=total if done or not note else None, note=note)

        return report

    try:
        yield reporter
    finally:
        if progress.tasks:
            progress.stop()


def print_error(error: BaseException) -> None:
    """One line, whatever characters the message holds."""
    err.print("error:", style="bold red", end=" ")
    err.print(str(error), markup=False, highlight=False, soft_wrap=True)


def print_clusters(result: FolderResult) -> None:
    """The table of clusters: name, size, what it is about, and the commonest sub-folder if there are sub-folders."""
    folders = result.folder_labels()
    table = _table()
    table.add_column("#", justify="right")
    table.add_column("name", style="cyan")
    table.add_column("size", justify="right")
    table.add_column("typical nouns")
    if folders is not None:
        table.add_column("mostly from folder")
    for cluster in result.clusters():
        row = [str(cluster["id"]), cluster["name"], f"{cluster['size']:,}", ", ".join(cluster["nouns"])]
        if folders is not None:
            names, labels = folders
            inside = labels[result.prediction.cluster == cluster["id"]]
            if len(inside):
                commonest = int(inside.mode().values)
                row.append(f"{names[commonest]} ({(inside == commonest).float().mean():.0%})")
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)


def print_scores(scores: Mapping[str, Mapping[str, float]]) -> None:
    """Agreement of each method with the sub-folders."""
    table = _table()
    table.add_column("method")
    for metric in ("acc", "nmi", "ari"):
        table.add_column(metric.upper(), justify="right")
    for method, row in scores.items():
        table.add_row(method, *(f"{row[metric]:.1f}" for metric in ("acc", "nmi", "ari")))
    out.print("\nagreement with the sub-folders, in percent")
    out.print(table)


def print_study(results: Sequence[Mapping[str, Any]]) -> None:
    """Mean and standard deviation over seeds of each method of a study."""
    table = _table()
    table.add_column("method")
    for column in ("NMI", "ACC", "ARI", "seconds"):
        table.add_column(column, justify="right")
    for result in results:
        scores = (f"{result[metric]['mean']:.1f} ± {result[metric]['std']:.1f}" for metric in ("nmi", "acc", "ari"))
        table.add_row(escape(result["method"]), *scores, f"{result['seconds']['total']:.1f}")
    out.print("agreement with the classes, in percent; seconds of one run after embedding")
    out.print(table)


def print_weights(result: FolderResult) -> None:
    """What the fused embedding is made of on average; a modality that takes all leaves nothing to fuse."""
    mean = {modality: float(weight.mean()) for modality, weight in result.weights().items()}
    shares = ", ".join(f"{modality} {weight:.0%}" for modality, weight in mean.items())
    out.print(f"mean fusion weights: {shares}", highlight=False)
    modality, weight = max(mean.items(), key=lambda item: item[1])
    if weight > COLLAPSED:
        warn(f"the fusion has collapsed to the {modality} embeddings ({weight:.1%}); a larger gamma mixes more")


def print_json(value: Any) -> None:
    """One JSON document on one line, for programs; paths as text."""
    out.file.write(json.dumps(value, default=os.fspath) + "\n")


def print_skipped(result: FolderResult) -> None:
    """Name the files that could not be read."""
    for path, reason in result.skipped.items():
        warn(f"skipped {result.relative(path)}: {reason}")


def print_missing(paths: Sequence[str], result: SavedResult) -> None:
    """Say which pictures are no longer where they were, the first few by name."""
    if paths:
        names = ", ".join(paths[:SHOWN]) + (", …" if len(paths) > SHOWN else "")
        warn(f"{len(paths):,} pictures are missing in {result.root} and left out ({names}); moved? give --images DIR")


def print_unmatched_edits(result: SavedResult) -> None:
    """Name the edits that do not fit the result any more."""
    for line in result.unmatched_edits:
        warn(f"edit not applied: {line}")


def warn(message: str) -> None:
    """A line that should not be missed but stops nothing."""
    err.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _table() -> Table:
    return Table(box=None, header_style="bold", pad_edge=False)
