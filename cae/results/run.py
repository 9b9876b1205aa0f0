"""A folder of images, or a file of their embeddings, through a module: fit and write a result, or predict."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cae.config import AUTO_N_CLUSTERS
from cae.data import ImageError, ImageFolderData, list_folder, read_image
from cae.data.listing import check_not_empty
from cae.data.on_disk import on_disk
from cae.data.vector_files import holds_vectors, read_vectors
from cae.encoders.deferred import maker
from cae.method.cluster_count import FEWEST
from cae.method.kmeans import image_kmeans
from cae.method.pipeline import Prediction
from cae.method.provenance import check_encoder
from cae.models.cae import CAE
from cae.models.embedder import embed_images
from cae.models.trained import load_pretrained
from cae.results.folder import EmbeddingsResult, FolderResult
from cae.results.layout import MODEL_FOLDER
from cae.results.predictions import groups_as_edited
from cae.results.saved import SavedResult
from cae.results.writing import LOCK, making, write_result
from cae.text.vectors import TEXTS_FOR_EMBEDDINGS, check_sources, texts_for_embeddings
from cae.utils.checksums import content_hashes
from cae.utils.devices import find_device
from cae.utils.files import absolute, holding, tidy
from cae.utils.progress import Reporter, listen_to_progress, silent, stage, stopwatch
from cae.utils.words import counted


def fit_source(
    module: CAE, source: Any, out: Path, *, device: str, batch_size: int, workers: int, reporter: Reporter = silent
) -> FolderResult:
    """Fit a fresh module on a source and write the result.

    Args:
        module: a module with `return_embeddings=True`.
        source: what `cae.data.on_disk.on_disk` takes.
        out: an existing folder for the result.
        device: device to work on, see `cae.utils.devices.find_device`.
        batch_size: images encoded at once.
        workers: processes that read images.
        reporter: makes the progress callback of each step.

    Raises:
        OutputError: another process makes a result there.
        ImageError, EmbeddingError, EncoderError, TextError, ValueError: as `run_source` raises them.

    Examples:
        >>> module = CAE(3, nouns="nouns.txt", captions="captions.txt", return_embeddings=True)
        >>> Path("fitted").mkdir()
        >>> found = fit_source(module, "photos", Path("fitted"), device="cpu", batch_size=8, workers=0)
        >>> Path("fitted", "clusters.json").is_file()
        True
    """
    with making(out):
        found, run = _fit(module, source, out, device=device, batch_size=batch_size, workers=workers, reporter=reporter)
        with holding(out / LOCK):  # an update or edit that began with the result before would otherwise end with both
            write_result(found, out, run)
    return found


def _fit(
    module: CAE, source: Any, out: Path, *, device: str, batch_size: int, workers: int, reporter: Reporter
) -> tuple[FolderResult, dict[str, Any]]:
    """What a fresh module finds in a source, and what `run.json` is to say of the run."""
    check_sources(module.config.modalities, module.sources)
    start = time.perf_counter()
    with stopwatch() as stages:
        found = run_source(
            module,
            on_disk(source, out, reporter),
            device=find_device(device),
            batch_size=batch_size,
            workers=workers,
            reporter=reporter,
        )
    seconds = time.perf_counter() - start
    timing = {"the rest: reading and embedding pictures": seconds - sum(stages.values()), **stages}
    run = {
        "method": module.method,
        "scores": _scores(found, "CAE" if module.method == "cae" else module.method),
        "seconds": round(seconds, 1),
        "stages": {name: round(s, 2) for name, s in timing.items()},
    }
    return found, run


def _scores(found: FolderResult, name: str) -> dict[str, dict[str, float]]:
    """NMI, ACC and ARI in percent, beside those of k-means on the images; empty without known classes."""
    if found.folder_labels() is None:
        return {}
    config = found.fitted.config
    baseline = image_kmeans(
        found.embeddings, config.n_clusters, n_init=config.n_init, max_iter=config.kmeans_iter, seed=config.seed
    )
    return {"image k-means": found.scores(baseline), name: found.scores(found.prediction.cluster)}


def predict_source(
    model: Path, source: Path, *, encoder_weights: str | os.PathLike[str] | None = None, device: str, **options: Any
) -> FolderResult:
    """Predict by a model on disk, without fitting again and without edits.

    Args:
        model: a model folder, or a result that holds one.
        source: a folder of images, a file of embeddings, or a folder of clip-retrieval.
        encoder_weights: a local weights file for `open_clip` encoders.
        device: device to work on, see `cae.utils.devices.find_device`.
        options: further arguments of `run_source`.

    Raises:
        ModelError: no model, a damaged one, or one of a newer format.
        ImageError, EmbeddingError, EncoderError, ValueError: as `run_source` raises them.

    Examples:
        >>> found = predict_source(Path("cae-result"), Path("photos"), device="cpu", batch_size=8, workers=0)
        >>> len(found.paths)
        30
    """
    tidy(model)
    nested = model / MODEL_FOLDER
    module = load_pretrained(
        nested if nested.is_dir() else model, encoder_weights=encoder_weights, return_embeddings=True
    )
    return run_source(module, source, device=find_device(device), **options)


def predict_as_edited(result: SavedResult, source: Path, **options: Any) -> FolderResult:
    """Predict by a result, in its groups as edited (`cae.results.predictions`).

    Args:
        result: the result without edits applied.
        source: as in `predict_source`.
        options: further arguments of `predict_source`.

    Raises:
        ResultError: what edits read of the result is damaged.
        ModelError, ImageError, EmbeddingError, EncoderError, ValueError: as `predict_source` raises them.

    Examples:
        >>> from cae.api import Result
        >>> result = Result("cae-result").rename(0, "harbour").saved
        >>> found = predict_as_edited(result, Path("photos"), device="cpu", batch_size=8, workers=0)
        >>> "harbour" in found.assignments()["name"].to_pylist()
        True
    """
    model = result.folder / MODEL_FOLDER
    if not result.edits:
        return predict_source(model, source, **options)
    _ = result.view  # damage is told before images are embedded
    found = predict_source(model, source, **options)
    return replace(found, edited=groups_as_edited(found, result))


def run_source(
    module: CAE,
    source: Path,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    reporter: Reporter = silent,
    paths: Sequence[Path] | None = None,
) -> FolderResult:
    """`run_embeddings` on a file of embeddings or a folder of clip-retrieval, `run_folder` on a folder of images.

    With `paths` it is always a folder of images.

    Examples:
        >>> module = CAE(3, nouns="nouns.txt", captions="captions.txt", return_embeddings=True)
        >>> found = run_source(module, Path("photos"), device=torch.device("cpu"), batch_size=8, workers=0)
        >>> len(found.paths), sum(cluster["size"] for cluster in found.clusters())
        (30, 30)
    """
    if paths is None and holds_vectors(source, "images"):
        return run_embeddings(module, source, device=device, reporter=reporter)
    return run_folder(
        module, source, device=device, batch_size=batch_size, workers=workers, reporter=reporter, paths=paths
    )


def run_embeddings(module: CAE, source: Path, *, device: torch.device, reporter: Reporter = silent) -> EmbeddingsResult:
    """Predict on embeddings, fitting the module first if it is fresh. An encoder is loaded only for texts that need it.

    Args:
        module: a module for vectors of the same encoder.
        source: file or folder, see `cae.data.vector_files.read_vectors`.
        device: device to work on.
        reporter: makes the progress callback of each step.

    Raises:
        EmbeddingError: the source cannot be read, or a row is not finite or zero.
        ValueError: fewer embeddings than clusters, or of another width than the texts.
        EncoderError: the encoder that texts need cannot be had.
        TextError: as the module raises it.
    """
    vectors = read_vectors(source)
    x = vectors.unit_rows()
    if module.fitted is None:
        _check_enough(module, source, len(x), "embedding")
        with texts_for_embeddings(source):
            expected, whose = module.encoder.to(device).dim, maker(module.encoder)
        remedy = f": {TEXTS_FOR_EMBEDDINGS}"
    else:
        expected, whose, remedy = module.fitted.means.shape[1], "the model", ""
    if x.shape[1] != expected:
        raise ValueError(
            f"{source} holds embeddings of width {x.shape[1]}, those of {whose} have width {expected}; both must come "
            f"from the same encoder{remedy}"
        )
    _load_texts(module, reporter)
    prediction = _place(module, x, device, reporter)
    root = _root_of_images(source, vectors.paths)
    if vectors.paths is not None:
        vectors = replace(vectors, paths=[_without_steps_up(path, root) for path in vectors.paths])
    paths = [root / path for path in vectors.paths or ()]
    assert module.fitted is not None  # by predicting
    return EmbeddingsResult(
        root=root,
        paths=paths,
        embeddings=x,
        prediction=prediction,
        fitted=module.fitted.to("cpu"),
        device=device,
        # A row without an image is known by its numbers.
        sha256=content_hashes(paths, reporter("hashes")) if paths else [_row_hash(row) for row in x],
        skipped={},
        vectors=vectors,
    )


def _root_of_images(source: Path, paths: Sequence[str] | None) -> Path:
    """The folder that relative paths start from: the file's, or the current one if only that has the first image."""
    beside = source if source.is_dir() else source.parent
    first = next(iter(paths or ()), "")
    return next((place for place in (beside, Path.cwd()) if first and (place / first).is_file()), beside)


def _without_steps_up(path: str, root: Path) -> str:
    """A path as results hold it: absolute if it leads out of the root by `..`."""
    return os.fspath(absolute(root / path)) if ".." in Path(path).parts else path


def _row_hash(row: Tensor) -> str:
    return hashlib.sha256(row.numpy().tobytes()).hexdigest()


def _check_enough(module: CAE, source: Path, n: int, what: str) -> None:
    if module.config.n_clusters == AUTO_N_CLUSTERS and n < FEWEST:
        raise ValueError(
            f"{source} holds {counted(n, what)}, too few to find out how many clusters there are: that takes {FEWEST}; "
            f"give --clusters or add {what}s"
        )
    if n < module.config.n_clusters:
        raise ValueError(
            f"{source} holds {counted(n, what)}, too few for {module.config.n_clusters} clusters; lower --clusters or "
            f"add {what}s"
        )


def run_folder(
    module: CAE,
    root: Path,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    reporter: Reporter = silent,
    paths: Sequence[Path] | None = None,
) -> FolderResult:
    """Predict on a folder, fitting the module first if it is fresh. Texts come before images: they fail sooner.

    Args:
        module: a module with `return_embeddings=True`.
        root: the folder.
        device: device to encode on.
        batch_size: images encoded at once.
        workers: processes that read images.
        reporter: makes the progress callback of each step.
        paths: take only these images of the folder.

    Raises:
        ImageError: no such folder, or no image in it.
        ValueError: fewer images than clusters.
        EncoderError, TextError, ModelError: as the module raises them.
    """
    left_out: dict[Path, str] = {}
    if paths is None:
        listing = list_folder(root)
        check_not_empty(root, listing)
        paths, left_out = listing.images, listing.left_out
    if module.fitted is None:
        _check_enough(module, root, len(paths), "picture")
    _load_encoder(module, device, reporter)
    _load_texts(module, reporter)
    data = ImageFolderData(root, batch_size=batch_size, num_workers=workers, paths=paths)
    report = reporter("pictures")
    report(0, len(data.paths))
    x, index = embed_images(data, module.encoder, device=device, progress=report)
    if module.fitted is not None:
        check_encoder(module.fitted, module.encoder)
    prediction = _place(module, x, device, reporter)
    readable = index.tolist()
    assert module.fitted is not None  # by predicting
    found = [paths[i] for i in readable]
    unreadable = [paths[i] for i in sorted(set(range(len(paths))) - set(readable))]
    return FolderResult(
        root=root,
        paths=found,
        embeddings=x,
        prediction=prediction,
        fitted=module.fitted.to("cpu"),
        device=device,
        sha256=content_hashes(found, reporter("hashes")),
        skipped=dict(sorted({**left_out, **{path: _why_unreadable(path) for path in unreadable}}.items())),
    )


def _load_encoder(module: CAE, device: torch.device, reporter: Reporter) -> None:
    """The encoder, which images need in any case: loading takes seconds, and a download minutes."""
    report = reporter("encoder")
    report(0, 1, module.encoder_spec)
    encoder = module.encoder.to(device)
    _ = encoder.image_size  # one that is deferred is loaded now, and not while pictures are counted
    report(1, 1)


def _load_texts(module: CAE, reporter: Reporter) -> None:
    """The texts that a fit needs; a fitted module has its own."""
    if module.fitted is None:
        with stage("texts"):
            module.load_banks(reporter)


def _place(module: CAE, x: Tensor, device: torch.device, reporter: Reporter) -> Prediction:
    """Predictions of embeddings (N, D), on the CPU, after a fit if the module is fresh."""
    on_device = x.to(device)
    if module.fitted is None:
        grouping = reporter("grouping")
        with listen_to_progress(lambda name, share, note: grouping(share, 1, f"{name} {note}".strip())):
            prediction = module.fit_embeddings(on_device)
        grouping(1, 1)
    else:
        module.fitted = module.fitted.to(device)
        prediction = module.to(device).predict_embeddings(on_device)
    return Prediction(*(value.cpu() for value in prediction))


def _why_unreadable(path: Path) -> str:
    try:
        read_image(path)
    except ImageError as error:
        return str(error)
    return "could not be read at first, but can be now"
