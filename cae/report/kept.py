"""What a drawing of the report leaves for the next one, so that an edit or an update does not draw it all again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cae.data.dataset import size_and_time
from cae.data.listing import REPORT_MARK
from cae.report.thumbnails import Thumbnails, sheet_name
from cae.results.saved import SavedResult
from cae.utils.checksums import parse_json, tensors_hash

FORMAT_VERSION = 3
"""From 3 on there are the stamps of the files."""
THUMBNAILS = "thumbnails"


@dataclass(frozen=True)
class ReportCache:
    """A report as it was drawn, by row of the assignments.

    Attributes:
        fingerprint: hash of what the map was made of, see `fingerprint`.
        side: pixels of a thumbnail's longer side.
        position: (N, 2) float32 on the map.
        thumbnails: thumbnails of the same N images.
        stamps: size and time of their files, when the thumbnails were made, see `stamps_of`.
        root: the folder in which the images were.
        compared: the result that it is compared with.
    """

    fingerprint: str
    side: int
    position: NDArray[np.float32]
    thumbnails: Thumbnails
    stamps: NDArray[np.int64]
    root: Path
    compared: Path | None

    def save(self, folder: Path) -> None:
        """Write it beside the sheets' folder."""
        about = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "side": self.side,
            "root": os.fspath(self.root.absolute()),
            "compared": None if self.compared is None else os.fspath(self.compared.absolute()),
        }
        arrays = {"position": self.position, "stamps": self.stamps, **self.thumbnails._asdict()}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        about["sha256"] = tensors_hash(tensors, about)
        # One entry: safetensors writes several in no fixed order, and the same report should be the same bytes.
        save_file(tensors, folder / REPORT_MARK, {"about": json.dumps(about)})

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read it; None if it is not there, damaged or of another version, or if a sheet is missing."""
        try:
            with safe_open(folder / REPORT_MARK, "pt") as file:
                about = parse_json(file.metadata()["about"])
                tensors = {name: file.get_tensor(name) for name in ("position", "stamps", *Thumbnails._fields)}
            if about["format_version"] != FORMAT_VERSION or about.pop("sha256") != tensors_hash(tensors, about):
                return None
            position, stamps, *thumbnails = (tensor.numpy() for tensor in tensors.values())
            kept = cls(
                about["fingerprint"],
                about["side"],
                position,
                Thumbnails(*thumbnails),
                stamps,
                Path(about["root"]),
                None if about["compared"] is None else Path(about["compared"]),
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None
        sheets = (folder / THUMBNAILS / sheet_name(i) for i in range(len(kept.thumbnails.sheets)))
        return kept if all(sheet.is_file() for sheet in sheets) else None

    def still(self, stamps: NDArray[np.int64]) -> Thumbnails:
        """The thumbnails of n images that show what their files hold; none yet of those that have come or changed.

        Args:
            stamps: stamps of the files as they are now, (n, 2), n at least N.
        """
        thumbnails, n = self.thumbnails.padded(len(stamps)), len(self.stamps)
        # Of a file that is away nothing can be said.
        changed = np.flatnonzero((stamps[:n] != self.stamps).any(axis=1) & stamps[:n].any(axis=1))
        thumbnails.place[changed], thumbnails.size[changed] = -1, 0
        return thumbnails

    def stamps_now(self, stamps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of files that are away as they were, the others as they are."""
        before = np.zeros_like(stamps)
        before[: len(self.stamps)] = self.stamps
        return np.where(stamps.any(axis=1, keepdims=True), stamps, before)

    def fits(self, result: SavedResult) -> bool:
        """Whether its images are the result's first ones, under the same model."""
        n = len(self.position)
        return n <= len(result.assignments) and self.fingerprint == fingerprint(result, n)


def stamps_of(paths: Sequence[Path | None]) -> NDArray[np.int64]:
    """Size and time of N files, (N, 2), by which one that was written to is known; 0 for one that is away."""
    return np.array([(0, 0) if path is None else size_and_time(path) for path in paths], np.int64).reshape(-1, 2)


def fingerprint(result: SavedResult, n: int) -> str:
    """SHA-256 over the fit and the embeddings of the first n images: what `fused`, and so the map, depends on.

    The level that the fit is cut at does not matter.
    """
    fitted = result.fitted
    if fitted.hierarchy is not None:
        fitted = fitted.cut(fitted.hierarchy.n_clusters)
    return tensors_hash({"embedding": result.embeddings[:n]}, fitted.state_dict()["sha256"])
