"""The result of clustering a folder: its tables in memory and its files on disk.

OUT/assignments.parquet, .csv   a row a picture
OUT/clusters.json               a record a cluster, under `clusters`
OUT/model/                      the fitted state (`cae.state`), for `cae predict`
OUT/run.json                    settings, provenance, scores and what was skipped
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cae.files import replacing
from cae.metrics import clustering_scores
from cae.pipeline import Prediction, top_texts
from cae.state import FittedCAE

MODEL_FOLDER = "model"
N_REPRESENTATIVES = 9
N_TOP_NOUNS = 3


class OutputError(OSError):
    """Results cannot be written where they were asked for."""


@dataclass(frozen=True)
class FolderResult:
    """The pictures of a folder with what was found out about them.

    Attributes:
        root: the folder.
        paths: N pictures that could be read, below `root`.
        embeddings: (N, D) float32 unit rows on the CPU.
        prediction: of the same N pictures, on the CPU.
        fitted: the state behind it, on the CPU.
        skipped: pictures that could not be read, with the reason.
    """

    root: Path
    paths: Sequence[Path]
    embeddings: Tensor
    prediction: Prediction
    fitted: FittedCAE
    skipped: dict[Path, str]

    def relative(self, path: Path) -> str:
        """A path below the root as text; bytes that are no UTF-8 show as the replacement character."""
        return os.fsencode(path.relative_to(self.root).as_posix()).decode("utf-8", "replace")

    def folder_labels(self) -> tuple[list[str], Tensor] | None:
        """The top sub-folder of each picture as its class: (names, (N,) int64).

        None unless every picture lies in a sub-folder and there are at least two of them.
        """
        tops = [path.relative_to(self.root).parts for path in self.paths]
        names = sorted({parts[0] for parts in tops})
        if len(names) < 2 or any(len(parts) < 2 for parts in tops):
            return None
        return names, torch.tensor([names.index(parts[0]) for parts in tops])

    def scores(self, labels: Tensor) -> dict[str, float] | None:
        """NMI, ACC and ARI in percent of any labels (N,) against the sub-folders; None without `folder_labels`."""
        folders = self.folder_labels()
        return None if folders is None else clustering_scores(labels, folders[1])

    def weights(self) -> dict[str, Tensor]:
        """beta of Eq. 16 by modality, each (N,) float32; zero for a modality that the settings leave out."""
        present = dict(zip(("image", *self.fitted.config.modalities), self.prediction.beta.unbind(dim=1), strict=True))
        absent = torch.zeros(len(self.paths))
        return {modality: present.get(modality, absent) for modality in ("image", "noun", "caption")}

    def assignments(self) -> pa.Table:
        """A row a picture: path, cluster, name, confidence, weights of Eq. 16, and its own top texts."""
        fitted, prediction = self.fitted, self.prediction
        columns: dict[str, Any] = {
            "path": [self.relative(path) for path in self.paths],
            "cluster": prediction.cluster.numpy(),
            "name": [fitted.clusters[k].name for k in prediction.cluster.tolist()],
            "confidence": prediction.confidence.numpy(),
        }
        for modality, weight in self.weights().items():
            columns[f"beta_{modality}"] = weight.numpy()
        columns["top_nouns"] = self._top_texts("noun", N_TOP_NOUNS)
        columns["top_caption"] = [texts[0] if texts else "" for texts in self._top_texts("caption", 1)]
        return pa.table(columns)

    def _top_texts(self, modality: str, k: int) -> list[list[str]]:
        selected = self.fitted.selected.get(modality)
        if selected is None:
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


def check_writable(out: Path) -> None:
    """Find out before the work whether results can be written.

    Raises:
        OutputError: `out` is a file, or nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to {out}: {error.strerror or error}; choose another folder with --out"
        ) from error


def write_assignments(table: pa.Table, out: Path) -> None:
    """Write `assignments.parquet` and `.csv`; in the CSV, lists are joined by '; '."""
    top_nouns = table.column_names.index("top_nouns")
    flat = table.set_column(
        top_nouns, "top_nouns", pa.array(["; ".join(nouns) for nouns in table["top_nouns"].to_pylist()])
    )
    with replacing(out / "assignments.parquet", out / "assignments.csv") as (parquet, text):
        pq.write_table(table, parquet)
        pacsv.write_csv(flat, text)


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file, readable by people."""
    with replacing(path) as (target,):
        target.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_result(result: FolderResult, out: Path, run: dict[str, Any]) -> None:
    """Write all files of a clustering run.

    Args:
        result: what was found.
        out: an existing folder.
        run: scores, timings and command of the run; provenance and settings are added.
    """
    write_assignments(result.assignments(), out)
    write_json({"clusters": result.clusters()}, out / "clusters.json")
    result.fitted.save(out / MODEL_FOLDER)
    write_json(
        {
            "root": os.fspath(result.root.absolute()),
            "images": len(result.paths),
            "beta_mean": {modality: round(float(weight.mean()), 4) for modality, weight in result.weights().items()},
            "skipped": {result.relative(path): reason for path, reason in result.skipped.items()},
            "config": asdict(result.fitted.config),
            **result.fitted.provenance,
            **run,
        },
        out / "run.json",
    )
