"""Commands that look at results: `cae compare`, `cae search`, `cae duplicates`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from cae.cli import terminal
from cae.cli.options import Device, Images, Json, MaxPixels, Quiet, ResultFolder, SearchEncoder, Weights, existing
from cae.results.defaults import LIMIT, NEAR


def compare(
    a: Annotated[Path, typer.Argument(help="A result of `cae cluster`.", metavar="A", callback=existing)],
    b: Annotated[Path, typer.Argument(help="Another, with pictures in common.", metavar="B", callback=existing)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the pictures that moved.")] = False,
) -> None:
    """Say how far two results agree, and what lies elsewhere in the second."""
    terminal.note_loading(quiet=False)
    from dataclasses import asdict

    from cae.api import Result

    comparison = Result(a).compare(b)
    if as_json:
        terminal.print_document(asdict(comparison))
    else:
        terminal.print_comparison(comparison)
        command = shlex.join(["cae", "report", str(b), "--compare", str(a)])
        terminal.out.print(f"on a page: {command}", highlight=False, soft_wrap=True)


def search(
    result: ResultFolder,
    query: Annotated[
        str | None, typer.Argument(help="What the pictures should show, as in a caption.", metavar="TEXT")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Find what is like this picture: one of the result, or any file.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many pictures to find.")] = LIMIT,
    open_found: Annotated[bool, typer.Option("--open", help="Show the pictures in the system's viewer.")] = False,
    encoder: SearchEncoder = None,
    encoder_weights: Weights = None,
    images: Images = None,
    device: Device = "auto",
    max_pixels: MaxPixels = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find pictures of a result by what they show, or by what they are like, best first."""
    terminal.note_loading(quiet=quiet)
    from dataclasses import asdict

    from cae.api import Result

    hits = Result(result, images=images).search(
        query,
        like=like,
        limit=limit,
        encoder=encoder,
        encoder_weights=encoder_weights,
        device=device,
        announce=lambda line: None if quiet else terminal.note(line),
    )
    if as_json:
        terminal.print_document({"text": query, "like": like, "pictures": [asdict(hit) for hit in hits]})
    else:
        terminal.print_hits(hits)
    if open_found:
        for hit in hits:
            if hit.file is not None:
                typer.launch(str(hit.file.absolute()))


def duplicates(
    result: ResultFolder,
    near: Annotated[
        int | None,
        typer.Option(
            help=f"How many of 64 bits of their perceptual hashes may differ in near copies, 0 to 32; default {NEAR}.",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Equal files alone, without near copies.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write the list to: .csv, .parquet or .json.")
    ] = None,
    images: Images = None,
    max_pixels: MaxPixels = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """List pictures of a result that are there more than once, the best copy first. Deletes nothing."""
    terminal.note_loading(quiet=quiet)
    from cae.api import Result
    from cae.results.duplicates import check_list_name, write_duplicates

    if exact and near is not None:
        raise ValueError("--near is how far near copies may differ, and --exact leaves them out: give one of the two")
    if out is not None:
        check_list_name(out)
    near = None if exact else NEAR if near is None else near
    found = Result(result, images=images).duplicates(near=near, progress=not quiet)
    if out is not None:
        write_duplicates(found, out)
    terminal.print_missing(found.missing)
    if as_json:
        terminal.print_document(found.document())
    elif not quiet:
        terminal.print_duplicates(found)
        if out is not None:
            terminal.out.print(f"list: {out}", highlight=False, soft_wrap=True)
