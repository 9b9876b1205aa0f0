"""`cae evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cae.cli import terminal
from cae.cli.options import (
    BatchSize,
    Captions,
    Device,
    EncoderSpec,
    MaxPixels,
    Nouns,
    Quiet,
    Weights,
    Workers,
    note_vectors,
)
from cae.config import DEFAULT_BATCH_SIZE, DEFAULT_ENCODER, DEFAULT_WORKERS

Dataset = Annotated[
    str,
    typer.Option(
        help="A folder with a sub-folder per class, a file of embeddings (.npy, .safetensors, .parquet), hf:NAME, "
        "or cifar10, cifar20, stl10, dtd, ucf101, imagenet, imagenet10, imagenet-dogs, demo.",
    ),
]
Methods = Annotated[
    str, typer.Option(help="Separated by commas; settings behind colons, as in default:gamma=0.05:top_k=10.")
]
FitOn = Annotated[
    Literal["test", "train"], typer.Option(help="Split on which texts are selected; TAC's protocol: train.")
]
ClassNames = Annotated[
    Path | None, typer.Option(help="For zero-shot: a text file, one name a line, or a file of their vectors.")
]


def evaluate(
    context: typer.Context,
    dataset: Dataset,
    methods: Methods = "kmeans,zero-shot,tac,paper,default,auto",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method.")] = 5,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where results.json, results.md and plots go.")] = Path(
        "cae-evaluation"
    ),
    fit_on: FitOn = "test",
    encoder: EncoderSpec = DEFAULT_ENCODER,
    encoder_weights: Weights = None,
    nouns: Nouns = None,
    captions: Captions = None,
    data_root: Annotated[Path | None, typer.Option(help="Where named data sets lie, or are downloaded to.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Classes of a file of embeddings: a .npy file.")] = None,
    class_names: ClassNames = None,
    tsne: Annotated[bool, typer.Option("--tsne", help="Draw the embeddings, coloured by class.")] = False,
    device: Device = "auto",
    batch_size: BatchSize = DEFAULT_BATCH_SIZE,
    workers: Workers = DEFAULT_WORKERS,
    max_pixels: MaxPixels = None,
    quiet: Quiet = False,
) -> None:
    """Score methods against known classes: NMI, ACC and ARI over seeds, with tables and plots."""
    terminal.note_loading(quiet=quiet)
    from cae import evaluation
    from cae.results.writing import check_writable, making
    from cae.utils.checksums import load_json
    from cae.utils.devices import find_device

    check_writable(out)
    note_vectors(context, dataset)
    with making(out), terminal.progress_bars(quiet=quiet) as reporter:
        results = evaluation.evaluate(
            dataset,
            [method.strip() for method in methods.split(",") if method.strip()],
            out,
            encoder=encoder,
            encoder_weights=encoder_weights,
            nouns=nouns,
            captions=captions,
            seeds=range(seeds),
            fit_on=fit_on,
            root=data_root,
            labels=labels,
            class_names=class_names,
            tsne=tsne,
            device=find_device(device),
            batch_size=batch_size,
            workers=workers,
            reporter=reporter,
        )
    if not quiet:
        terminal.print_study(results)
        if load_json(out / "results.json")["encoder"]["spec"] == "lite":
            terminal.out.print("lite encoder: it is not CLIP, and its scores are not comparable to the paper's")
        terminal.out.print(f"results: {out / 'results.md'}", soft_wrap=True)
