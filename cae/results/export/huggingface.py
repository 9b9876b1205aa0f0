"""An image folder as Hugging Face `datasets` reads it without code: `load_dataset(OUT)`."""

from __future__ import annotations

import json
from pathlib import Path

from cae.results.export.tree import Plan
from cae.results.saved import SavedResult
from cae.utils.names import distinct_names


def plan(result: SavedResult) -> Plan:
    """`train/FILE` and `train/metadata.jsonl`, whose columns are those of the assignments, and `label`, the name.

    All images lie in one folder called `train`: `datasets` takes other folders, such as a cluster called `test`, for
    splits.
    """
    rows = result.present()
    names = distinct_names(place.name for _, place in rows)

    def write_metadata(path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            for name, (row, _) in zip(names, rows, strict=True):
                metadata = {"file_name": name, "label": row["name"], **row}
                file.write(json.dumps(metadata, ensure_ascii=False) + "\n")

    images = {f"train/{name}": place for name, (_, place) in zip(names, rows, strict=True)}
    return {**images, "train/metadata.jsonl": write_metadata}
