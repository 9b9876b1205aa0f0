"""A `FiftyOneImageClassificationDataset`, which FiftyOne imports; FiftyOne itself is not needed to write one."""

from __future__ import annotations

from pathlib import PurePosixPath

from cae.results.export.tree import Plan
from cae.results.saved import SavedResult
from cae.utils.files import dump_json
from cae.utils.names import distinct_names


def plan(result: SavedResult) -> Plan:
    """`data/FILE`, and `labels.json` with the classes and, by file name without ending, the class of each image."""
    classes = {record["id"]: i for i, record in enumerate(result.clusters)}
    rows = result.present()
    names = distinct_names((place.name for _, place in rows), by_stem=True)
    labels = {
        "classes": [record["name"] for record in result.clusters],
        "labels": {
            PurePosixPath(name).stem: classes[row["cluster"]] for name, (row, _) in zip(names, rows, strict=True)
        },
    }
    images = {f"data/{name}": place for name, (_, place) in zip(names, rows, strict=True)}
    return {**images, "labels.json": lambda path: dump_json(labels, path)}
