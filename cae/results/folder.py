"""What is known of the images of a folder, or of the rows of a file of embeddings, once they are clustered."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cae.data.images import shown_path
from cae.data.vector_files import Vectors
from cae.method.fitted import FittedCAE
from cae.method.hierarchy import Placement
from cae.method.pipeline import Prediction, placement, top_texts
from cae.metrics.functional import clustering_scores
from cae.results.representatives import representatives

N_TOP_NOUNS = 3


class Groups(NamedTuple):
    """Which groups N images are in.

    Attributes:
        cluster: (N,) int64, the id of each image's group.
        runner_up: (N,) int64, the id of the next best; null where there is no other.
        records: id, name, gloss, nouns and captions of each group, by id.
    """

    cluster: Tensor
    runner_up: pa.Array
    records: dict[int, dict[str, Any]]


@dataclass(frozen=True)
class FolderResult:
    """The images of a folder with what was found out about them.

    Attributes:
        root: the folder.
        paths: N images that could be read, below `root`.
        embeddings: (N, D) float32 unit rows on the CPU.
        prediction: prediction for the same N images, on the CPU; edits change nothing in it.
        fitted: the state behind it, on the CPU.
        device: where the prediction was made.
        sha256: hashes of the files' bytes, by which images are recognised (`cae.utils.checksums.content_hash`).
        skipped: files that look like an image but could not be used, with the reason.
        edited: the groups as people have edited them, where that is asked for (`cae.results.run.predict_as_edited`).
    """

    root: Path
    paths: Sequence[Path]
    embeddings: Tensor
    prediction: Prediction
    fitted: FittedCAE
    device: torch.device
    sha256: Sequence[str | None]
    skipped: dict[Path, str]
    edited: Groups | None = field(default=None, kw_only=True)

    @property
    def groups(self) -> Groups:
        """The groups of the images: as edited, or else as predicted."""
        if self.edited is not None:
            return self.edited
        records = {cluster.id: asdict(cluster) for cluster in self.fitted.clusters}
        return Groups(self.prediction.cluster, pa.array(self.prediction.runner_up.numpy()), records)

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
        """One row per image: path, cluster and confidence, the weights of Eq. 16, its own top texts, its hash."""
        groups, prediction = self.groups, self.prediction
        columns: dict[str, Any] = {
            "path": self.names,
            "cluster": groups.cluster.numpy(),
            "name": [groups.records[k]["name"] for k in groups.cluster.tolist()],
            "confidence": prediction.confidence.numpy(),
            "similarity": prediction.similarity.numpy(),
            "runner_up": groups.runner_up,
        }
        for modality, weight in self.weights().items():
            columns[f"beta_{modality}"] = weight.numpy()
        columns["top_nouns"] = pa.array(self._top_texts("noun", N_TOP_NOUNS), pa.list_(pa.string()))
        columns["top_caption"] = [texts[0] if texts else "" for texts in self._top_texts("caption", 1)]
        columns["sha256"] = pa.array(self.sha256, pa.string())
        if self.fitted.hierarchy is not None:
            columns["leaf"] = prediction.leaf.numpy()
        return pa.table(columns)

    def _top_texts(self, modality: str, k: int) -> list[list[str]]:
        selected = self.fitted.selected.get(modality)
        if selected is None or not len(self.embeddings):
            return [[] for _ in self.embeddings]
        rows = top_texts(self.embeddings, selected, min(k, len(selected.texts))).tolist()
        return [[selected.texts[j] for j in row] for row in rows]

    def placement(self) -> Placement | None:
        """Where the images are on all levels of the tree of groups, on the CPU; None without a tree."""
        if self.fitted.hierarchy is None:
            return None
        # Where it was predicted: another device rounds otherwise, and a cut at K is to bring back the predictions.
        x, leaf = (rows.to(self.device) for rows in (self.embeddings, self.prediction.leaf))
        return Placement(*(values.cpu() for values in placement(x, self.fitted.to(self.device), leaf)))

    def clusters(self) -> list[dict[str, Any]]:
        """One record per group, with the images most similar to their centroid and its size in this folder."""
        records, names, groups = [], self.names, self.groups
        for id, record in groups.records.items():
            members = (groups.cluster == id).nonzero().squeeze(1)
            order = self.prediction.similarity[members].argsort(descending=True, stable=True)
            nearest = representatives(members[order].tolist(), names, self.sha256)
            records.append(
                {
                    **record,
                    "size": len(members),
                    "representatives": [names[i] for i in nearest],
                }
            )
        return records


@dataclass(frozen=True)
class EmbeddingsResult(FolderResult):
    """The rows of a file of embeddings with what was found out about them.

    Without a column of paths there are no images: `paths` is empty, and rows are named by their numbers.

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
