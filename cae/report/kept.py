"""What a drawing of the report leaves for the next one, so that an edit or an update does not draw it all again."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cae.checksums import content_hash, tensors_hash
from cae.data.listing import REPORT_MARK
from cae.report.thumbnails import Thumbnails, sheet_name
from cae.results import MODEL_FOLDER, SavedResult

FORMAT_VERSION = 2
THUMBNAILS = "thumbnails"


@dataclass(frozen=True)
class Kept:
    """A report as it was drawn, by row of the assignments.

    Attributes:
        fingerprint: of what the map was made of, see `fingerprint`.
        side: pixels of a thumbnail's longer side.
        position: (N, 2) float32 on the map.
        thumbnails: of the same N pictures.
        root: the folder in which the pictures were.
        compared: the result that it is compared with.
    """

    fingerprint: str
    side: int
    position: NDArray[np.float32]
    thumbnails: Thumbnails
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
        arrays = {"position": self.position, **self.thumbnails._asdict()}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        about["sha256"] = tensors_hash(tensors, about)
        # One entry: safetensors writes several in no fixed order, and the same report should be the same bytes.
        save_file(tensors, folder / REPORT_MARK, {"about": json.dumps(about)})

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read it; None if it is not there, damaged or of another version, or if a sheet is missing."""
        try:
            with safe_open(folder / REPORT_MARK, "pt") as file:
                about = json.loads(file.metadata()["about"])
                tensors = {name: file.get_tensor(name) for name in ("position", *Thumbnails._fields)}
            if about["format_version"] != FORMAT_VERSION or about.pop("sha256") != tensors_hash(tensors, about):
                return None
            position, *thumbnails = (tensor.numpy() for tensor in tensors.values())
            kept = cls(
                about["fingerprint"],
                about["side"],
                position,
                Thumbnails(*thumbnails),
                Path(about["root"]),
                None if about["compared"] is None else Path(about["compared"]),
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None
        sheets = (folder / THUMBNAILS / sheet_name(i) for i in range(len(kept.thumbnails.sheets)))
        return kept if all(sheet.is_file() for sheet in sheets) else None

    def fits(self, result: SavedResult) -> bool:
        """Whether its pictures are the result's first ones, under the same model."""
        n = len(self.position)
        return n <= len(result.assignments) and self.fingerprint == fingerprint(result, n)


def fingerprint(result: SavedResult, n: int) -> str:
    """SHA-256 over the model and the embeddings of the first n pictures: what `fused`, and so the map, depends on."""
    model = [content_hash(path) for path in sorted((result.folder / MODEL_FOLDER).iterdir())]
    return tensors_hash({"embedding": result.embeddings[:n]}, model)
