"""A folder of images, or a file of their embeddings, from disk to what is known of each of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cae.data import ImageError, ImageFolderData, list_folder, read_image
from cae.data.images import shown_path
from cae.data.listing import check_not_empty
from cae.data.vector_files import Vectors, holds_vectors, read_vectors
from cae.encoders.deferred import maker
from cae.method.fitted import FittedCAE
from cae.method.naming import N_REPRESENTATIVES
from cae.method.pipeline import Prediction, top_texts
from cae.method.provenance import check_encoder
from cae.metrics.functional import clustering_scores
from cae.models.cae import CAE
from cae.models.embedder import embed_images
from cae.utils.checksums import content_hashes
from cae.utils.progress import Reporter, listen_to_progress, silent, stage
from cae.utils.words import counted

N_TOP_NOUNS = 3


@dataclass(frozen=True)
class FolderResult:
    """The images of a folder with what was found out about them.

    Attributes:
        root: the folder.
        paths: N images that could be read, below `root`.
        embeddings: (N, D) float32 unit rows on the CPU.
        prediction: prediction for the same N images, on the CPU.
        fitted: the state behind it, on the CPU.
        sha256: of the files' bytes, by which an image is known wherever it goes (`cae.utils.checksums.content_hash`).
        skipped: files that look like an image but could not be used, with the reason.
    """

    root: Path
    paths: Sequence[Path]
    embeddings: Tensor
    prediction: Prediction
    fitted: FittedCAE
    sha256: Sequence[str | None]
    skipped: dict[Path, str]

    def relative(self, path: Path) -> str:
        """A path below the root as text."""
        return shown_path(path, self.root)

    @property
    def names(self) -> list[str]:
        """What the assignments call each image: its path below the root."""
        return [self.relative(path) for path in self.paths]

    @property
    def labels_are(self) -> str:
        """What `folder_labels` are, for people."""
        return "sub-folders"

    @property
    def source(self) -> dict[str, Any]:
        """What `run.json` says of where the result comes from, besides the root."""
        return {}

    def folder_labels(self) -> tuple[list[str], Tensor] | None:
        """The top sub-folder of each image as its class: (names, (N,) int64).

        None unless every image lies in a sub-folder and there are at least two of them.
        """
        tops = [path.relative_to(self.root).parts for path in self.paths]
        names = sorted({parts[0] for parts in tops})
        if len(names) < 2 or any(len(parts) < 2 for parts in tops):
            return None
        number = {name: i for i, name in enumerate(names)}
        return names, torch.tensor([number[parts[0]] for parts in tops])

    def scores(self, labels: Tensor) -> dict[str, float]:
        """NMI, ACC and ARI in percent of any labels (N,) against the sub-folders; empty without `folder_labels`."""
        folders = self.folder_labels()
        return {} if folders is None else clustering_scores(labels, folders[1])

    def weights(self) -> dict[str, Tensor]:
        """Beta of Eq. 16 by modality, each (N,) float32; zero for a modality that the settings leave out."""
        present = dict(zip(("image", *self.fitted.config.modalities), self.prediction.beta.unbind(dim=1), strict=True))
        absent = torch.zeros(len(self.embeddings))
        return {modality: present.get(modality, absent) for modality in ("image", "noun", "caption")}

    def assignments(self) -> pa.Table:
        """A row an image: its path, where it goes and how surely, weights of Eq. 16, its own top texts, its hash."""
        fitted, prediction = self.fitted, self.prediction
        columns: dict[str, Any] = {
            "path": self.names,
            "cluster": prediction.cluster.numpy(),
            "name": [fitted.clusters[k].name for k in prediction.cluster.tolist()],
            "confidence": prediction.confidence.numpy(),
            "similarity": prediction.similarity.numpy(),
            "runner_up": prediction.runner_up.numpy(),
        }
        for modality, weight in self.weights().items():
            columns[f"beta_{modality}"] = weight.numpy()
        columns["top_nouns"] = pa.array(self._top_texts("noun", N_TOP_NOUNS), pa.list_(pa.string()))
        columns["top_caption"] = [texts[0] if texts else "" for texts in self._top_texts("caption", 1)]
        columns["sha256"] = pa.array(self.sha256, pa.string())
        if fitted.hierarchy is not None:
            columns["leaf"] = prediction.leaf.numpy()
        return pa.table(columns)

    def _top_texts(self, modality: str, k: int) -> list[list[str]]:
        selected = self.fitted.selected.get(modality)
        if selected is None or not len(self.embeddings):
            return [[] for _ in self.embeddings]
        rows = top_texts(self.embeddings, selected, min(k, len(selected.texts))).tolist()
        return [[selected.texts[j] for j in row] for row in rows]

    def clusters(self) -> list[dict[str, Any]]:
        """A record a cluster, with the images nearest to its centroid and its size in this folder."""
        records, names = [], self.names
        for cluster in self.fitted.clusters:
            members = (self.prediction.cluster == cluster.id).nonzero().squeeze(1)
            order = self.prediction.similarity[members].argsort(descending=True, stable=True)
            nearest = members[order[:N_REPRESENTATIVES]].tolist()
            records.append(
                {
                    **asdict(cluster),
                    "size": len(members),
                    "representatives": [names[i] for i in nearest],
                }
            )
        return records


@dataclass(frozen=True)
class EmbeddingsResult(FolderResult):
    """The rows of a file of embeddings with what was found out about them.

    Without a column of paths there are no images: `paths` is empty, and a row is called by its number.

    Attributes:
        vectors: the contents of the file.
    """

    vectors: Vectors

    @cached_property
    def names(self) -> list[str]:
        """The paths as the file has them, or the rows' numbers."""
        return self.vectors.paths or [str(row) for row in range(len(self.embeddings))]

    @property
    def labels_are(self) -> str:
        """What `folder_labels` are, for people."""
        return "labels"

    @property
    def source(self) -> dict[str, Any]:
        """The files, and whether the rows of the result are images or mere embeddings."""
        files = [os.fspath(Path(name).absolute()) for name, _ in self.vectors.parts]
        return {"embeddings": files, "rows_are": "pictures" if self.paths else "embeddings"}

    def folder_labels(self) -> tuple[list[str], Tensor] | None:
        """The classes in the file: (names, (N,) int64). None unless there are at least two."""
        if self.vectors.labels is None:
            return None
        names, numbers = np.unique(self.vectors.labels, return_inverse=True)
        return ([str(name) for name in names], torch.from_numpy(numbers)) if len(names) > 1 else None


def run_source(
    module: CAE, source: Path, *, device: torch.device, batch_size: int, workers: int, reporter: Reporter = silent
) -> FolderResult:
    """`run_embeddings` on a file of embeddings or a folder of clip-retrieval, `run_folder` on a folder of images.

    Examples:
        >>> module = CAE(3, nouns="nouns.txt", captions="captions.txt", return_embeddings=True)
        >>> found = run_source(module, Path("photos"), device=torch.device("cpu"), batch_size=8, workers=0)
        >>> len(found.paths), sum(cluster["size"] for cluster in found.clusters())
        (30, 30)
    """
    if holds_vectors(source, "images"):
        return run_embeddings(module, source, device=device, reporter=reporter)
    return run_folder(module, source, device=device, batch_size=batch_size, workers=workers, reporter=reporter)


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
        EncoderError, TextError: as the module raises them.
    """
    vectors = read_vectors(source)
    x = vectors.unit_rows()
    if module.fitted is None:
        _check_enough(module, source, len(x), "embedding")
        expected, whose = module.encoder.to(device).dim, maker(module.encoder)
    else:
        expected, whose = module.fitted.means.shape[1], "the model"
    if x.shape[1] != expected:
        raise ValueError(
            f"{source} holds embeddings of width {x.shape[1]}, those of {whose} have width {expected}: both must come "
            "from the same encoder"
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
    """A path that leads out of the root by `..` as an absolute one: results hold no others."""
    return os.path.abspath(root / path) if ".." in Path(path).parts else path  # noqa: PTH100 (keeps links as they are)


def _row_hash(row: Tensor) -> str:
    return hashlib.sha256(row.numpy().tobytes()).hexdigest()


def _check_enough(module: CAE, source: Path, n: int, what: str) -> None:
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
    module.encoder.to(device)
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
        sha256=content_hashes(found, reporter("hashes")),
        skipped=dict(sorted({**left_out, **{path: _why_unreadable(path) for path in unreadable}}.items())),
    )


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
