"""The command line: a command each, thin. `cae.cli.edit` has the commands below `cae edit`."""

from __future__ import annotations

import os
import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from cae.cli import terminal
from cae.cli.edit import Redraw, edit_app, redraw
from cae.cli.open import open_result
from cae.config import DEFAULT_ENCODER
from cae.utils.words import counted

if TYPE_CHECKING:
    from cae.api import Result

# Whatever needs torch is imported inside the commands: `cae --help` answers at once.

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130


class _Commands(TyperGroup):
    """Errors that a user can fix become one line and a non-zero exit."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except typer.BadParameter as error:
            # The prefix is pydantic's, by which newer versions of typer read options.
            error.message = error.message.removeprefix("Value error, ")
            raise
        except KeyboardInterrupt as error:
            terminal.warn("interrupted; what is embedded so far is kept: run the command again to go on")
            raise typer.Exit(EXIT_INTERRUPTED) from error
        except (ValueError, OSError, RuntimeError) as error:
            terminal.print_error(error)
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
app.add_typer(edit_app, name="edit")
app.command("open")(open_result)


def _allow_pixels(n: int | None) -> int | None:
    """Tell every process that reads pictures how many pixels one may have."""
    if n is not None:
        os.environ["CAE_MAX_PIXELS"] = str(n)
    return n


Folder = Annotated[Path, typer.Argument(help="Pictures, in any depth of sub-folders.", metavar="DIR")]
Pictures = Annotated[
    Path,
    typer.Argument(
        help="Pictures, in any depth of sub-folders; or their embeddings: .npy, .safetensors, .parquet, or a folder of "
        "clip-retrieval.",
        metavar="DIR|FILE",
    ),
]
EncoderSpec = Annotated[str, typer.Option(help="open_clip:MODEL/PRETRAINED, or lite (no download; not CLIP).")]
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
        help="Leave out larger pictures; by default what takes too much memory.",
    ),
]
ResultFolder = Annotated[Path, typer.Argument(help="A result of `cae cluster`.", metavar="RESULT")]
Images = Annotated[Path | None, typer.Option(help="Where the pictures lie now, if they have moved.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document in place of tables.")]
Report = Annotated[bool, typer.Option("--report/--no-report", help="Draw the result as a page to look at.")]
Out = typer.Option("--out", "-o", help="Where the result goes.")


def main() -> None:
    """Run the command line."""
    quiet_libraries()
    app(prog_name="cae")


def quiet_libraries() -> None:
    """Leave out warnings that a user can do nothing about."""
    # Deprecations between libraries are their developers' business.
    warnings.filterwarnings("ignore", category=FutureWarning)
    # A damaged picture can bring a hundred; if it cannot be read, it is named in one line.
    warnings.filterwarnings("ignore", module="PIL")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Common options."""
    if version:
        from importlib.metadata import version as installed

        terminal.out.print(installed("cae-clustering"), highlight=False)
        raise typer.Exit


@app.command()
def cluster(
    folder: Pictures,
    clusters: Annotated[
        str, typer.Option("--clusters", "-k", help="Number of groups, or auto to find it out.", metavar="N|auto")
    ] = "auto",
    out: Annotated[Path, Out] = Path("cae-result"),
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
    batch_size: BatchSize = 64,
    workers: Workers = 2,
    max_pixels: MaxPixels = None,
    report: Report = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Sort the pictures of a folder, or embeddings of pictures, into named groups."""
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


@app.command()
def demo(
    out: Annotated[Path, Out] = Path("demo-result"),
    encoder: EncoderSpec = "lite",
    device: Device = "auto",
    seed: Seed = 0,
    report: Report = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cluster the pictures that come with cae: photographs and drawings in folders by subject."""
    from cae.data.demo import demo_images

    images = demo_images()
    n_clusters = sum(entry.is_dir() for entry in images.iterdir())
    settings = {"n_clusters": n_clusters, "encoder": encoder, "seed": seed, "device": device}
    _cluster(images, out, settings, report=report, quiet=quiet, as_json=as_json)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A result of `cae cluster`, or the model in it.", metavar="MODEL")],
    folder: Pictures,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the assignments go.")] = Path("cae-predictions"),
    encoder_weights: Weights = None,
    device: Device = "auto",
    batch_size: BatchSize = 64,
    workers: Workers = 2,
    max_pixels: MaxPixels = None,
    quiet: Quiet = False,
) -> None:
    """Sort new pictures into the groups of a fitted model, without fitting again."""
    from cae.models.trained import load_pretrained
    from cae.results.folder import run_source
    from cae.results.layout import MODEL_FOLDER
    from cae.results.writing import check_writable, write_assignments
    from cae.utils.devices import find_device
    from cae.utils.files import tidy

    check_writable(out)
    tidy(model)
    nested = model / MODEL_FOLDER
    module = load_pretrained(
        nested if nested.is_dir() else model, encoder_weights=encoder_weights, return_embeddings=True
    )
    with terminal.progress_bars(quiet=quiet) as reporter:
        result = run_source(
            module, folder, device=find_device(device), batch_size=batch_size, workers=workers, reporter=reporter
        )
    write_assignments(result.assignments(), out)
    terminal.print_skipped(result.skipped, folder)
    if not quiet:
        terminal.print_clusters(result)
        terminal.out.print(f"assignments: {out / 'assignments.csv'}", soft_wrap=True)


@app.command("report")
def draw_report(
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
    from cae.report import REPORT_FOLDER, write_report
    from cae.results.compare import compare as compare_results
    from cae.results.saved import SavedResult

    saved = SavedResult.load(result, images=images)
    comparison = None if compare is None else compare_results(SavedResult.load(compare), saved)
    with terminal.progress_bars(quiet=quiet) as reporter:
        page = write_report(saved, out or result / REPORT_FOLDER, reporter, comparison=comparison)
    terminal.print_unmatched_edits(saved)
    if not quiet:
        terminal.out.print(f"report: {page}", soft_wrap=True, highlight=False)


@app.command()
def update(
    result: ResultFolder,
    folder: Folder,
    images: Images = None,
    encoder_weights: Weights = None,
    device: Device = "auto",
    batch_size: BatchSize = 64,
    workers: Workers = 2,
    max_pixels: MaxPixels = None,
    report: Redraw = True,
    quiet: Quiet = False,
) -> None:
    """Add the new pictures of a folder to a result; what was assigned stays. Says what fits no group."""
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


@app.command()
def cut(
    result: ResultFolder,
    clusters: Annotated[int, typer.Option("--clusters", "-k", help="Number of groups.", metavar="N")],
    images: Images = None,
    report: Redraw = True,
    quiet: Quiet = False,
) -> None:
    """Show a result at another level of its tree of groups, coarser or finer, without a new fit; edits stay."""
    from cae.api import Result

    saved = Result(result, images=images).cut(clusters).saved
    if quiet:
        terminal.print_unmatched_edits(saved)
    else:
        terminal.print_edits(saved)
    redraw(result, report=report, images=images, quiet=quiet)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A result of `cae cluster`.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Another, with pictures in common.", metavar="B")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the pictures that moved.")] = False,
) -> None:
    """Say how far two results agree, and what lies elsewhere in the second."""
    from dataclasses import asdict

    from cae.results.compare import compare
    from cae.results.saved import SavedResult

    comparison = compare(SavedResult.load(a), SavedResult.load(b))
    if as_json:
        terminal.print_document(asdict(comparison))
    else:
        terminal.print_comparison(comparison)
        command = shlex.join(["cae", "report", str(b), "--compare", str(a)])
        terminal.out.print(f"on a page: {command}", highlight=False, soft_wrap=True)


@app.command()
def search(
    result: ResultFolder,
    query: Annotated[
        str | None, typer.Argument(help="What the pictures should show, as in a caption.", metavar="TEXT")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="A picture, of the result or any other file, to find the like of.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Pictures to find, at most.")] = 20,
    open_found: Annotated[bool, typer.Option("--open", help="Show the pictures in the system's viewer.")] = False,
    encoder: Annotated[
        str | None, typer.Option(help="For a result of embeddings, which does not say: their encoder.")
    ] = None,
    encoder_weights: Weights = None,
    images: Images = None,
    device: Device = "auto",
    max_pixels: MaxPixels = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find pictures of a result by what they show, or by what they are like, best first."""
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


@app.command()
def duplicates(
    result: ResultFolder,
    near: Annotated[
        int | None,
        typer.Option(
            help="How many of 64 bits of their perceptual hashes may differ in near copies, 0 to 32; default 8.",
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
    from cae.api import Result
    from cae.results.duplicates import NEAR, check_list_name, write_duplicates

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


@app.command()
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
    from cae.results.duplicates import find_duplicates
    from cae.results.export import export
    from cae.results.saved import SavedResult

    saved = SavedResult.load(result, images=images)
    place = out or Path("cae-export") / to
    with terminal.progress_bars(quiet=quiet) as reporter:
        without = find_duplicates(saved, reporter=reporter).rows if without_duplicates else ()
        done = export(saved, to, place, by=by, nested=nested, without=without, progress=reporter("files"))
    terminal.print_unmatched_edits(saved)
    terminal.print_missing(done.missing)
    terminal.print_changed(done.changed)
    if not quiet:
        removed = f", {done.removed:,} of an earlier export removed" if done.removed else ""
        left_out = f", {counted(len(without), 'duplicate')} left out" if without_duplicates else ""
        terminal.out.print(
            f"{counted(done.written, 'file')} in {place}{removed}{left_out}", highlight=False, soft_wrap=True
        )


@app.command()
def evaluate(
    dataset: Annotated[
        str,
        typer.Option(
            help="A folder with a sub-folder per class, a file of embeddings (.npy, .safetensors, .parquet), hf:NAME, "
            "or cifar10, cifar20, stl10, dtd, ucf101, imagenet, imagenet10, imagenet-dogs, demo.",
        ),
    ],
    methods: Annotated[
        str, typer.Option(help="Separated by commas; settings behind colons, as in default:gamma=0.05:top_k=10.")
    ] = "kmeans,zero-shot,tac,paper,default,auto",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method.")] = 5,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where results.json, results.md and plots go.")] = Path(
        "cae-evaluation"
    ),
    fit_on: Annotated[
        Literal["test", "train"], typer.Option(help="Split on which texts are selected; TAC's protocol: train.")
    ] = "test",
    encoder: EncoderSpec = DEFAULT_ENCODER,
    encoder_weights: Weights = None,
    nouns: Nouns = None,
    captions: Captions = None,
    data_root: Annotated[Path | None, typer.Option(help="Where named data sets lie, or are downloaded to.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Classes of a file of embeddings: a .npy file.")] = None,
    class_names: Annotated[
        Path | None, typer.Option(help="For zero-shot: a text file, one name a line, or a file of their vectors.")
    ] = None,
    tsne: Annotated[bool, typer.Option("--tsne", help="Draw the embeddings, coloured by class.")] = False,
    device: Device = "auto",
    batch_size: BatchSize = 64,
    workers: Workers = 2,
    max_pixels: MaxPixels = None,
    quiet: Quiet = False,
) -> None:
    """Score methods against known classes: NMI, ACC and ARI over seeds, with tables and plots."""
    from cae import evaluation
    from cae.results.writing import check_writable
    from cae.utils.checksums import load_json
    from cae.utils.devices import find_device

    check_writable(out)
    with terminal.progress_bars(quiet=quiet) as reporter:
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


@texts_app.command("build")
def texts_build(
    encoder: EncoderSpec = DEFAULT_ENCODER,
    encoder_weights: Weights = None,
    nouns: Nouns = None,
    captions: Captions = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Embed the nouns and captions ahead of time; `cae cluster` then finds them in the cache."""
    from cae.encoders import load_encoder
    from cae.text import load_bank
    from cae.text.vectors import is_vectors, text_sources
    from cae.utils.devices import find_device

    sources = text_sources(nouns, captions)
    if given := [str(source) for source in sources.values() if is_vectors(source)]:
        raise ValueError(f"{', '.join(given)} holds vectors: nothing to embed; give it to `cae cluster` as it is")
    loaded = load_encoder(encoder, weights=encoder_weights, device=find_device(device))
    for kind, source in sources.items():
        with terminal.progress_bars(quiet=quiet) as reporter:
            bank = load_bank(kind, str(source), loaded, reporter)
        if not quiet:
            terminal.out.print(
                f"{kind}s: {counted(len(bank.texts), 'text')} of {bank.corpus.name}, cached", highlight=False
            )


def _cluster_count(text: str) -> int | Literal["auto"]:
    """The value of --clusters."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 2:
        raise typer.BadParameter(f"{text!r} is neither a whole number of at least 2 nor auto", param_hint="--clusters")
    return int(text)


def _cluster(folder: Path, out: Path, settings: dict[str, Any], *, report: bool, quiet: bool, as_json: bool) -> None:
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
        terminal.out.print("\nwith the edits beside the result")
        terminal.print_edits(saved)
    else:
        terminal.print_unmatched_edits(saved)
    page = None
    if report and saved.has_images:
        page = result.report(progress=not quiet)
        if shown:
            terminal.out.print(f"report: {page}", soft_wrap=True, highlight=False)
    elif saved.has_images:
        redraw(result.folder, report=False)
    elif shown:
        terminal.out.print("no page: the embeddings name no pictures (a column `path` of a .parquet file does)")
    if as_json:
        terminal.print_document(
            {"result": result.folder, "report": page, "run": saved.run, "clusters": result.clusters}
        )
