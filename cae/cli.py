"""The command line: `cae cluster`, `cae predict`, `cae demo`, `cae texts build`."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

# Whatever needs torch is imported inside the commands: `cae --help` answers at once.

out_console = Console()
err_console = Console(stderr=True)

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
COLLAPSED = 0.99


class _Commands(TyperGroup):
    """Errors that a user can mend become one line and a non-zero exit; bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as error:
            err_console.print(
                "interrupted; texts embedded so far are kept: run the command again to go on", style="yellow"
            )
            raise typer.Exit(EXIT_INTERRUPTED) from error
        except (ValueError, OSError, RuntimeError) as error:
            err_console.print("error:", style="bold red", end=" ")
            err_console.print(str(error), markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(EXIT_FAILURE) from error


app = typer.Typer(
    name="cae",
    cls=_Commands,
    help="Sort a pile of unlabelled pictures into named groups, without training anything.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
texts_app = typer.Typer(help="Text banks: nouns and captions, embedded once and cached.", no_args_is_help=True)
app.add_typer(texts_app, name="texts")

Encoder = Annotated[str, typer.Option(help="open_clip:MODEL/PRETRAINED, or lite (no download; not CLIP).")]
Weights = Annotated[
    Path | None, typer.Option(help="Local weights file for an open_clip encoder, instead of a download.")
]
Nouns = Annotated[str, typer.Option(help="wordnet, imagenet22k, or a text file with one noun a line.")]
Captions = Annotated[str, typer.Option(help="flickr30k, glosses, or a text file with one caption a line.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures encoded at once.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read pictures.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]

DEFAULT_ENCODER = "open_clip:ViT-B-32/openai"


def main() -> None:
    """Run the command line."""
    # Deprecations between libraries are their developers' business.
    warnings.filterwarnings("ignore", category=FutureWarning)
    app(prog_name="cae")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Common options."""
    if version:
        from importlib.metadata import version as installed

        out_console.print(installed("cae-clustering"))
        raise typer.Exit


@app.command()
def cluster(
    folder: Annotated[Path, typer.Argument(help="Pictures, in any depth of sub-folders.", metavar="DIR")],
    clusters: Annotated[int, typer.Option("--clusters", "-k", min=2, help="Number of groups.")],
    out: Annotated[Path, typer.Option(help="Where the result goes.")] = Path("cae-result"),
    encoder: Encoder = DEFAULT_ENCODER,
    encoder_weights: Weights = None,
    nouns: Nouns = "imagenet22k",
    captions: Captions = "glosses",
    preset: Annotated[Literal["default", "paper", "tac"], typer.Option(help="Settings of the method.")] = "default",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Same seed, same groups.")] = 0,
    batch_size: BatchSize = 64,
    workers: Workers = 2,
    quiet: Quiet = False,
) -> None:
    """Sort the pictures of a folder into named groups."""
    from cae.results import check_writable

    check_writable(out)
    _cluster(
        folder,
        out,
        {
            "n_clusters": clusters,
            "preset": preset,
            "encoder": encoder,
            "encoder_weights": str(encoder_weights) if encoder_weights else None,
            "nouns": nouns,
            "captions": captions,
            "seed": seed,
        },
        device=device,
        batch_size=batch_size,
        workers=workers,
        quiet=quiet,
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the result goes.")] = Path("demo-result"),
    encoder: Encoder = "lite",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Same seed, same groups.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Cluster the pictures that come with cae: public-domain drawings in folders by subject."""
    from cae.demo import demo_images
    from cae.results import check_writable

    check_writable(out)
    images = demo_images()
    n_clusters = sum(entry.is_dir() for entry in images.iterdir())
    _cluster(
        images,
        out,
        {"n_clusters": n_clusters, "encoder": encoder, "seed": seed},
        device=device,
        batch_size=64,
        workers=2,
        quiet=quiet,
    )


@app.command()
def predict(
    model: Annotated[
        Path, typer.Argument(help="A result of `cae cluster`, or the model folder in it.", metavar="MODEL")
    ],
    folder: Annotated[Path, typer.Argument(help="Pictures, in any depth of sub-folders.", metavar="DIR")],
    out: Annotated[Path, typer.Option(help="Where the assignments go.")] = Path("cae-predictions"),
    encoder_weights: Weights = None,
    device: Device = "auto",
    batch_size: BatchSize = 64,
    workers: Workers = 2,
    quiet: Quiet = False,
) -> None:
    """Sort new pictures into the groups of a fitted model, without fitting again."""
    from cae.module import CAE
    from cae.results import MODEL_FOLDER, check_writable, write_assignments

    check_writable(out)
    nested = model / MODEL_FOLDER
    module = CAE.from_pretrained(
        nested if nested.is_dir() else model,
        encoder_weights=str(encoder_weights) if encoder_weights else None,
        return_embeddings=True,
    )
    result = _run_folder(module, folder, device=device, batch_size=batch_size, workers=workers, quiet=quiet)
    write_assignments(result.assignments(), out)
    if not quiet:
        _print_clusters(result)
        _print_skipped(result)
        out_console.print(f"assignments: {out / 'assignments.csv'}", soft_wrap=True)


@texts_app.command("build")
def texts_build(
    encoder: Encoder = DEFAULT_ENCODER,
    encoder_weights: Weights = None,
    nouns: Nouns = "imagenet22k",
    captions: Captions = "glosses",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Embed the nouns and captions ahead of time; `cae cluster` then finds them in the cache."""
    from cae.module import CAE

    module = CAE(
        2,
        encoder=encoder,
        encoder_weights=str(encoder_weights) if encoder_weights else None,
        nouns=nouns,
        captions=captions,
    )
    module.encoder.to(_torch_device(device))
    with _progress(quiet) as progress:
        banks = _build_banks(module, progress)
    if not quiet:
        for modality, bank in banks.items():
            out_console.print(f"{modality}s: {len(bank.texts):,} texts of {bank.corpus.name}, cached")


def _cluster(folder: Path, out: Path, settings: dict[str, Any], *, quiet: bool, **loading: Any) -> None:
    """Fit on a folder, print what came out and write it down."""
    from cae.clustering import image_kmeans
    from cae.module import CAE
    from cae.results import write_result

    start = time.perf_counter()
    module = CAE(**settings, return_embeddings=True)
    result = _run_folder(module, folder, quiet=quiet, **loading)
    seconds = time.perf_counter() - start
    config = module.config
    baseline = image_kmeans(
        result.embeddings, config.n_clusters, n_init=config.n_init, max_iter=config.kmeans_iter, seed=config.seed
    )
    scores = {"image k-means": result.scores(baseline), "CAE": result.scores(result.prediction.cluster)}
    write_result(result, out, {"scores": scores, "seconds": round(seconds, 1)})
    if quiet:
        return
    _print_clusters(result)
    if scores["CAE"] is not None:
        _print_scores(scores)
    _print_weights(result)
    _print_skipped(result)
    if settings["encoder"] == "lite":
        out_console.print("lite encoder: made for trying things out offline; it is not CLIP and its scores are lower")
    out_console.print(f"{len(result.paths):,} pictures in {seconds:.0f} s; result: {out}", soft_wrap=True)


def _run_folder(module: Any, folder: Path, *, device: str, batch_size: int, workers: int, quiet: bool) -> Any:
    """Predict on a folder with a module, fitting it first if it is fresh; texts before pictures."""
    import torch

    from cae.data import ImageError, ImageFolderData, list_images, read_image
    from cae.pipeline import Prediction
    from cae.results import FolderResult

    paths = list_images(folder)
    fresh = module.fitted is None
    if fresh and len(paths) < module.config.n_clusters:
        raise ValueError(
            f"{folder} holds {len(paths)} pictures, too few for {module.config.n_clusters} clusters; "
            "lower --clusters or add pictures"
        )
    target = _torch_device(device)
    module.encoder.to(target)
    data = ImageFolderData(folder, batch_size=batch_size, num_workers=workers, paths=paths)
    with _progress(quiet) as progress:
        if fresh:
            _build_banks(module, progress)
        trainer = _trainer(target, _picture_bar(progress, len(paths)))
        try:
            batches = trainer.predict(module, datamodule=data)
        except SystemExit as stop:
            # How Lightning answers Ctrl-C.
            raise KeyboardInterrupt if trainer.interrupted else stop from stop
    assert batches is not None  # the trainer was not told to drop them
    columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    index = columns["index"].tolist()
    skipped = {}
    for i in sorted(set(range(len(paths))) - set(index)):
        try:
            read_image(paths[i])
            skipped[paths[i]] = "could be read at a second try"
        except ImageError as error:
            skipped[paths[i]] = str(error)
    return FolderResult(
        root=folder,
        paths=[paths[i] for i in index],
        embeddings=columns["embedding"],
        prediction=Prediction(**{field: columns[field] for field in Prediction._fields}),
        fitted=module.fitted.to("cpu"),
        skipped=skipped,
    )


def _build_banks(module: Any, progress: Progress) -> Any:
    """Embed or load the module's text banks, a bar each."""

    def reporter(modality: str) -> Callable[[int, int], None]:
        task = progress.add_task(f"{modality}s", total=None)
        return lambda done, total: progress.update(task, completed=done, total=total)

    return module.load_banks(reporter)


def _torch_device(name: str) -> Any:
    """The device a name stands for.

    Raises:
        ValueError: no such device here.
    """
    import torch

    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return device


def _picture_bar(progress: Progress, total: int) -> Any:
    """A Lightning callback that moves a bar with every batch of pictures."""
    from lightning.pytorch.callbacks import LambdaCallback

    task = progress.add_task("pictures", total=total)

    def advance(_trainer: Any, _module: Any, outputs: Any, batch: Any, *_rest: Any) -> None:
        progress.update(task, advance=len(batch["index"]))

    return LambdaCallback(on_predict_batch_end=advance)


def _trainer(device: Any, callback: Any) -> Any:
    """A Lightning Trainer that only predicts and says nothing of its own."""
    import lightning.pytorch as pl

    # Lightning tells of devices and loaders it would set up otherwise; the progress bars are this program's.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    return pl.Trainer(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class _RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")


def _progress(quiet: bool) -> Progress:
    """Bars on the error stream, so that results can be piped; plain or absent where it is no terminal."""
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        console=err_console,
        disable=quiet,
    )


def _print_clusters(result: Any) -> None:
    """The table of clusters: name, size, what it is about, and the commonest sub-folder if there are sub-folders."""
    folders = result.folder_labels()
    table = Table(box=None, header_style="bold", pad_edge=False)
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
                mode = int(inside.mode().values)
                row.append(f"{names[mode]} ({(inside == mode).float().mean():.0%})")
        table.add_row(*(escape(cell) for cell in row))
    out_console.print(table)


def _print_scores(scores: dict[str, dict[str, float]]) -> None:
    """Agreement with the sub-folders, beside the baseline without texts."""
    table = Table(
        box=None, header_style="bold", pad_edge=False, title="agreement with the sub-folders, %", title_justify="left"
    )
    table.add_column("method")
    for metric in ("acc", "nmi", "ari"):
        table.add_column(metric.upper(), justify="right")
    for method, row in scores.items():
        table.add_row(method, *(f"{row[metric]:.1f}" for metric in ("acc", "nmi", "ari")))
    out_console.print()
    out_console.print(table)


def _print_weights(result: Any) -> None:
    """What the fused embedding is made of on average; a modality that takes all leaves nothing to fuse."""
    mean = {modality: float(weight.mean()) for modality, weight in result.weights().items()}
    out_console.print(
        "mean fusion weights: " + ", ".join(f"{modality} {weight:.0%}" for modality, weight in mean.items())
    )
    modality, weight = max(mean.items(), key=lambda item: item[1])
    if weight > COLLAPSED:
        err_console.print(
            f"the fusion has collapsed to the {modality} embeddings ({weight:.1%}); a larger gamma mixes more",
            style="yellow",
        )


def _print_skipped(result: Any) -> None:
    """Name the files that could not be read."""
    for path, reason in result.skipped.items():
        err_console.print(f"skipped {result.relative(path)}: {reason}", style="yellow", markup=False, soft_wrap=True)
