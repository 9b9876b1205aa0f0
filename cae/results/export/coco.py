"""Annotations in COCO's form for whole images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cae.data.images import ImageError, image_size
from cae.results.export.tree import ExportError, Plan
from cae.results.saved import SavedResult
from cae.utils.files import dump_json


def plan(result: SavedResult) -> Plan:
    """`annotations.json`; `file_name` is below the folder of the images, which stay there.

    An annotation is about the whole image and so has no box; its `score` is the confidence.
    """

    def write(path: Path) -> None:
        dump_json(_document(result), path)

    return {"annotations.json": write}


def _document(result: SavedResult) -> dict[str, Any]:
    rows = list(enumerate(result.present(), 1))  # COCO's numbers begin at 1
    sizes = [_size(place) for _, (_, place) in rows]
    return {
        "info": {"description": "clusters found by cae", "encoder": result.run.get("encoder", {}).get("spec")},
        "licenses": [],
        "images": [
            {"id": number, "file_name": row["path"], "width": width, "height": height}
            for (number, (row, _)), (width, height) in zip(rows, sizes, strict=True)
        ],
        "categories": [
            {"id": record["id"] + 1, "name": record["name"], "supercategory": ""} for record in result.clusters
        ],
        "annotations": [
            {
                "id": number,
                "image_id": number,
                "category_id": row["cluster"] + 1,
                "iscrowd": 0,
                "score": round(row["confidence"], 4),
            }
            for number, (row, _) in rows
        ],
    }


def _size(place: Path) -> tuple[int, int]:
    try:
        return image_size(place)
    except ImageError as error:
        raise ExportError(f"{place} is no picture any more ({error}); put it back or remove it") from error
