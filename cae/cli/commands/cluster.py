"""Commands that sort pictures into groups: `cae cluster`, `cae demo`, `cae predict`, `cae update`."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cae.cli import terminal
from cae.cli.commands.report import redraw
from cae.cli.options import (
    BatchSize,
    Captions,
    Device,
    EncoderSpec,
    Folder,
    Images,
    Json,
    MaxPixels,
    Nouns,
    Pictures,
    Quiet,
    Redraw,
    Report,
    ResultFolder,
    Seed,
    Weights,
    Workers,
    existing,
    note_vectors,
)
from cae.config import DEFAULT_BATCH_SIZE, DEFAULT_ENCODER, DEFAULT_WORKERS

if TYPE_CHECKING:
    from cae.api import Result


def cluster(
    context: typer.Context,
    folder: Pictures,
    clusters: Annotated[
        str, typer.Option("--clusters", "-k", help="Number of groups, or auto to find it out.", metavar="N|auto")
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Where the result goes, in the place of any that is there; by default "
            "cae-result, where only a result of the same pictures is replaced.",
        ),
    ] = None,
    encoder: EncoderSpec = DEFAULT_ENCODER,
    encoder_weights: Weights = None,
    nouns: Nouns = None,
    captions: Captions = None,
    preset: Annotated[
        Literal["auto", "default", "paper", "tac"], typer.Option(help="Settings of the method.")
    ] = "auto",
    method: Annotated[
        Literal["cae", "tac-heads", "cae-heads", "mca"],
        typer.Option(help="cae trains nothing; the others do."),
    ] = "cae",
    device: Device = "auto",
    seed: Seed = 0,
    batch_size: BatchSize = DEFAULT_BATCH_SIZE,
    workers: Workers = DEFAULT_WORKERS,
    max_pixels: MaxPixels = None,
    report: Report = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Sort the pictures of a folder, or embeddings of pictures, into named groups."""
    terminal.note_loading(quiet=quiet)
    note_vectors(context, folder)
    settings = {
        "n_clusters": _cluster_count(clusters),
        "method": method,
        "preset": preset,
        "encoder": encoder,
        "encoder_weights": encoder_weights,
        "nouns": nouns,
        "captions": captions,
        "seed": seed,
        "device": device,
        "batch_size": batch_size,
        "workers": workers,
    }
    _cluster(folder, out, settings, report=report, quiet=quiet, as_json=as_json)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the result goes.")] = Path("demo-result"),
    encoder: EncoderSpec = "lite",
    device: Device = "auto",
    seed: Seed = 0,
    report: Report = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cluster the pictures that come with cae: photographs and drawings in folders by subject."""
    terminal.note_loading(quiet=quiet)
    from cae.data.demo import demo_images

    images = demo_images()
    n_clusters = sum(entry.is_dir() for entry in images.iterdir())
    settings = {"n_clusters": n_clusters, "encoder": encoder, "seed": seed, "device": device}
    _cluster(images, out, settings, report=report, quiet=quiet, as_json=as_json)


def predict(
    context: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(help="A result of `cae cluster`, or the model in it.", metavar="MODEL", callback=existing),
    ],
    folder: Pictures,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the assignments go.")] = Path("cae-predictions"),
    encoder_weights: Weights = None,
    device: Device = "auto",
    batch_size: BatchSize = DEFAULT_BATCH_SIZE,
    workers: Workers = DEFAULT_WORKERS,
    max_pixels: MaxPixels = None,
    quiet: Quiet = False,
) -> None:
    """Sort new pictures into the groups of a result as edited, or of a model, without fitting again."""
    terminal.note_loading(quiet=quiet)
    from cae.results.edits_file import load_edits
    from cae.results.run import predict_as_edited, predict_source
    from cae.results.saved import SavedResult
    from cae.results.writing import check_place_of_predictions, making, write_assignments

    check_place_of_predictions(out)
    note_vectors(context, folder)
    saved = SavedResult.load(model) if load_edits(model) else None
    if saved is not None:
        terminal.print_unmatched_edits(saved)
    with making(out), terminal.progress_bars(quiet=quiet) as reporter:
        predicted = partial(predict_source, model) if saved is None else partial(predict_as_edited, saved)
        result = predicted(
            folder,
            encoder_weights=encoder_weights,
            device=device,
            batch_size=batch_size,
            workers=workers,
            reporter=reporter,
        )
        write_assignments(result.assignments(), out)
    terminal.print_skipped(result.skipped, folder)
    if not quiet:
        terminal.print_clusters(result)
        terminal.out.print(f"assignments: {out / 'assignments.csv'}", soft_wrap=True)


def update(
    result: ResultFolder,
    folder: Folder,
    images: Images = None,
    encoder_weights: Weights = None,
    device: Device = "auto",
    batch_size: BatchSize = DEFAULT_BATCH_SIZE,
    workers: Workers = DEFAULT_WORKERS,
    max_pixels: MaxPixels = None,
    report: Redraw = True,
    quiet: Quiet = False,
) -> None:
    """Add the new pictures of a folder to a result; what was assigned stays. Says what fits no group."""
    terminal.note_loading(quiet=quiet)
    from cae.api import Result
    from cae.data.vector_files import holds_vectors

    if holds_vectors(folder, "images"):
        raise ValueError(f"{folder} holds embeddings, and only pictures can be added: `cae predict` sorts embeddings")
    saved = Result(result, images=images)
    before = len(saved.assignments)
    done = saved.update(
        folder,
        encoder_weights=encoder_weights,
        device=device,
        batch_size=batch_size,
        workers=workers,
        progress=not quiet,
    )
    terminal.print_skipped(done.skipped, folder)
    if not quiet:
        terminal.print_added(saved.assignments.slice(before).to_pylist(), done.diff)
    terminal.print_changed(done.diff.changed)
    terminal.print_refit(done.refit_reasons)
    if done.diff.paths:
        redraw(result, report=report, images=images, quiet=quiet)


def _cluster_count(text: str) -> int | Literal["auto"]:
    """The value of --clusters."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 2:
        raise typer.BadParameter(f"{text!r} is neither a whole number of at least 2 nor auto", param_hint="--clusters")
    return int(text)


def _cluster(
    folder: Path, out: Path | None, settings: dict[str, Any], *, report: bool, quiet: bool, as_json: bool
) -> None:
    """Make a result, draw it and print it."""
    import cae

    result = cae.cluster(folder, out=out, progress=not quiet, **settings)
    _print_result(result, folder, report=report, quiet=quiet, as_json=as_json)


def _print_result(result: Result, folder: Path, *, report: bool, quiet: bool, as_json: bool) -> None:
    """Print what a fit found, with the edits beside it, and draw the page."""
    found, saved, shown = result.found, result.saved, not quiet and not as_json
    assert found is not None  # it has just been made
    terminal.print_skipped(found.skipped, folder)
    if shown:
        terminal.print_found(found, saved)
    if shown and saved.edits:
        terminal.out.print()
        terminal.out.print("with the edits beside the result")
        terminal.print_edits(saved)
    else:
        terminal.print_unmatched_edits(saved)
    page = None
    if report and saved.has_images:
        page = result.report(progress=not quiet)
        if shown:
            terminal.out.print(f"report: {page}", soft_wrap=True, highlight=False)
            command = shlex.join(["cae", "open", str(result.folder)])
            terminal.out.print(f"to change the groups in the browser: {command}", soft_wrap=True, highlight=False)
    elif saved.has_images:
        redraw(result.folder, report=False)
    elif shown:
        terminal.out.print("no page: the embeddings name no pictures (a column `path` of a .parquet file does)")
    if as_json:
        terminal.print_document(
            {"result": result.folder, "report": page, "run": saved.run, "clusters": result.clusters}
        )
