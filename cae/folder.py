"""A folder of pictures, from disk to what is known of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from cae.checksums import content_hashes
from cae.data import ImageError, ImageFolderData, list_folder, read_image
from cae.data.listing import check_not_empty
from cae.data.pictures import shown_path
from cae.embedder import embed_pictures
from cae.module import CAE, check_encoder
from cae.naming import N_REPRESENTATIVES
from cae.pipeline import Prediction, top_texts
from cae.scores import clustering_scores
from cae.state import FittedCAE
from cae.stopwatch import Reporter, stage, watching
from cae.words import counted

N_TOP_NOUNS = 3


@dataclass(frozen=True)
class FolderResult:
    """The pictures of a folder with what was found out about them.

    Attributes:
        root: the folder.
        paths: N pictures that could be read, below `root`.
        embeddings: (N, D) float32 unit rows on the CPU.
        prediction: of the same N pictures, on the CPU.
        fitted: the state behind it, on the CPU.
        sha256: of the files' bytes, by which a picture is known wherever it goes (`cae.checksums.content_hash`).
        skipped: what looks like a picture but could not be used, with the reason.
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

    def folder_labels(self) -> tuple[list[str], Tensor] | None:
        """The top sub-folder of each picture as its class: (names, (N,) int64).

        None unless every picture lies in a sub-folder and there are at least two of them.
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
        absent = torch.zeros(len(self.paths))
        return {modality: present.get(modality, absent) for modality in ("image", "noun", "caption")}

    def assignments(self) -> pa.Table:
        """A row a picture: its path, where it goes and how surely, weights of Eq. 16, its own top texts, its hash."""
        fitted, prediction = self.fitted, self.prediction
        columns: dict[str, Any] = {
            "path": [self.relative(path) for path in self.paths],
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
        return pa.table(columns)

    def _top_texts(self, modality: str, k: int) -> list[list[str]]:
        selected = self.fitted.selected.get(modality)
        if selected is None or not self.paths:
            return [[] for _ in self.paths]
        rows = top_texts(self.embeddings, selected, min(k, len(selected.texts))).tolist()
        return [[selected.texts[j] for j in row] for row in rows]

    def clusters(self) -> list[dict[str, Any]]:
        """A record a cluster, with the pictures nearest to its centroid and its size in this folder."""
        records = []
        for cluster in self.fitted.clusters:
            members = (self.prediction.cluster == cluster.id).nonzero().squeeze(1)
            order = self.prediction.similarity[members].argsort(descending=True, stable=True)
            nearest = members[order[:N_REPRESENTATIVES]].tolist()
            records.append(
                {
                    **asdict(cluster),
                    "size": len(members),
                    "representatives": [self.relative(self.paths[i]) for i in nearest],
                }
            )
        return records


def run_folder(
    module: CAE,
    root: Path,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    reporter: Reporter,
    paths: Sequence[Path] | None = None,
) -> FolderResult:
    """Predict on a folder, fitting the module first if it is fresh. Texts come before pictures: they fail sooner.

    Args:
        module: with `return_embeddings=True`.
        root: the folder.
        device: where to encode.
        batch_size: pictures encoded at once.
        workers: processes that read pictures.
        reporter: hears of progress.
        paths: take only these pictures of the folder.

    Raises:
        ImageError: no such folder, or no picture in it.
        ValueError: fewer pictures than clusters.
        EncoderError, TextError, ModelError: as the module raises them.
    """
    left_out: dict[Path, str] = {}
    if paths is None:
        listing = list_folder(root)
        check_not_empty(root, listing)
        paths, left_out = listing.pictures, listing.left_out
    if module.fitted is None and len(paths) < module.config.n_clusters:
        raise ValueError(
            f"{root} holds {counted(len(paths), 'picture')}, too few for {module.config.n_clusters} clusters; "
            "lower --clusters or add pictures"
        )
    module.encoder.to(device)
    if module.fitted is None:
        with stage("texts"):
            module.load_banks(reporter)
    data = ImageFolderData(root, batch_size=batch_size, num_workers=workers, paths=paths)
    columns = _predict(module, data, device, reporter)
    readable = columns["index"].tolist()
    assert module.fitted is not None  # by predicting
    found = [paths[i] for i in readable]
    unreadable = [paths[i] for i in sorted(set(range(len(paths))) - set(readable))]
    return FolderResult(
        root=root,
        paths=found,
        embeddings=columns["embedding"],
        prediction=Prediction(**{field: columns[field] for field in Prediction._fields}),
        fitted=module.fitted.to("cpu"),
        sha256=content_hashes(found, reporter("hashes")),
        skipped=dict(sorted({**left_out, **{path: _why_unreadable(path) for path in unreadable}}.items())),
    )


def _predict(module: CAE, data: ImageFolderData, device: torch.device, reporter: Reporter) -> dict[str, Tensor]:
    """Embeddings and predictions of the pictures that can be read, after a fit if the module is fresh."""
    report = reporter("pictures")
    report(0, len(data.paths))
    x, index = embed_pictures(data, module.encoder, device=device, progress=report)
    on_device = x.to(device)
    if module.fitted is None:
        grouping = reporter("grouping")
        with watching(lambda name, share, note: grouping(share, 1, f"{name} {note}".strip())):
            prediction = module.fit_embeddings(on_device)
        grouping(1, 1)
    else:
        check_encoder(module.fitted, module.encoder)
        module.fitted = module.fitted.to(device)
        prediction = module.to(device).predict_embeddings(on_device)
    columns = {field: value.cpu() for field, value in prediction._asdict().items()}
    return {**columns, "index": index, "embedding": x}


def _why_unreadable(path: Path) -> str:
    try:
        read_image(path)
    except ImageError as error:
        return str(error)
    return "could not be read at first, but can be now"
