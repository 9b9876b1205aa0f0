"""Annotations in COCO's form for whole images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from cae.export.tree import Plan
from cae.files import dump_json
from cae.results import SavedResult


def plan(result: SavedResult) -> Plan:
    """`annotations.json`; `file_name` is below the folder of the pictures, which stay there.

    An annotation is about the whole image and so has no box; its `score` is the confidence.
    """

    def write(path: Path) -> None:
        dump_json(_document(result), path)

    return {"annotations.json": write}


def _document(result: SavedResult) -> dict[str, Any]:
    rows = list(enumerate(result.present(), 1))  # COCO's numbers begin at 1
    return {
        "info": {"description": "clusters found by cae", "encoder": result.run.get("encoder", {}).get("spec")},
        "licenses": [],
        "images": [
            {"id": number, "file_name": row["path"], **dict(zip(("width", "height"), _size(place), strict=True))}
            for number, (row, place) in rows
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
    """Width and height in pixels, as the file has them, before any turning; read from its header."""
    with Image.open(place) as image:
        return image.size
