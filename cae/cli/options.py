"""Options that several commands share: their types, and what `--help` says of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def _allow_pixels(n: int | None) -> int | None:
    """Tell every process that reads pictures how many pixels one may have."""
    if n is not None:
        os.environ["CAE_MAX_PIXELS"] = str(n)
    return n


def existing(path: Path) -> Path:
    """Refuse what is not there at once: a command loads PyTorch first, which takes seconds.

    Raises:
        ValueError: neither a folder nor a file.
    """
    if not path.exists():
        raise ValueError(f"no such folder or file: {path}")
    return path


GIVEN_VECTORS = "cae.given_vectors"
"""In a context's `meta`: whether the command reads vectors, so that no embeddings of its own are kept."""


def note_vectors(context: typer.Context, source: Path | str) -> None:
    """Keep for an interruption whether the command reads vectors or images."""
    from cae.data.vector_files import holds_vectors

    context.meta[GIVEN_VECTORS] = holds_vectors(source, "images")


Folder = Annotated[
    Path, typer.Argument(help="Pictures, in any depth of sub-folders.", metavar="DIR", callback=existing)
]
Pictures = Annotated[
    Path,
    typer.Argument(
        help="Pictures, in any depth of sub-folders; or their embeddings: .npy, .safetensors, .parquet, or a folder of "
        "clip-retrieval.",
        metavar="DIR|FILE",
        callback=existing,
    ),
]
EncoderSpec = Annotated[str, typer.Option(help="open_clip:MODEL/PRETRAINED, or lite (no download; not CLIP).")]
SearchEncoder = Annotated[
    str | None,
    typer.Option(help="Encoder to search with, for a result that was made from embeddings and names none."),
]
Weights = Annotated[Path | None, typer.Option(help="Local weights for an open_clip encoder, instead of a download.")]
Nouns = Annotated[
    str | None,
    typer.Option(
        help="imagenet22k (the default), wordnet, a text file with one noun a line, or a file of text vectors (.npy, "
        ".safetensors, .parquet) of the images' encoder.",
        show_default=False,
    ),
]
Captions = Annotated[
    str | None,
    typer.Option(
        help="glosses (the default), flickr30k, a text file with one caption a line, or a file of text vectors. Where "
        "one of nouns and captions is vectors and the other is not given, that is left out.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option(help="Same seed, same groups.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures encoded at once.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read pictures.")]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        min=1,
        envvar="CAE_MAX_PIXELS",
        callback=_allow_pixels,
        help="Leave out larger pictures; by default what takes too much memory. Four bands or slices of a TIFF count "
        "as a pixel.",
    ),
]
ResultFolder = Annotated[Path, typer.Argument(help="A result of `cae cluster`.", metavar="RESULT", callback=existing)]
Images = Annotated[Path | None, typer.Option(help="Where the pictures lie now, if they have moved.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document in place of tables.")]
Report = Annotated[bool, typer.Option("--report/--no-report", help="Draw the result as a page to look at.")]
Redraw = Annotated[
    bool, typer.Option("--report/--no-report", help="Draw the page in RESULT/report again, if there is one.")
]
