"""A folder a cluster, called after it."""

from __future__ import annotations

from pathlib import Path

from cae.results.export.names import distinct_names
from cae.results.export.tree import Plan
from cae.results.saved import SavedResult


def plan(result: SavedResult) -> Plan:
    """`NAME/FILE` for every image that is still there; names that would collide are numbered."""
    folders = distinct_names(record["name"] for record in result.clusters)
    places: dict[int, list[Path]] = {record["id"]: [] for record in result.clusters}
    for row, place in result.present():
        places[row["cluster"]].append(place)
    return {
        f"{folder}/{name}": place
        for folder, inside in zip(folders, places.values(), strict=True)
        for name, place in zip(distinct_names(place.name for place in inside), inside, strict=True)
    }
