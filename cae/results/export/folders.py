"""A folder a cluster, called after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cae.results.export.tree import ExportError, Plan
from cae.results.saved import SavedResult
from cae.utils.names import distinct_names


def plan(result: SavedResult) -> Plan:
    """`NAME/FILE` for every image that is still there; names that would collide are numbered."""
    return _plan(result, distinct_names(record["name"] for record in result.clusters))


def plan_nested(result: SavedResult) -> Plan:
    """`TOP/NAME/FILE`, where TOP is the group of the tree's coarsest level that a cluster is part of.

    A cluster that is such a group itself, or that an edit has made, is not nested.
    """
    tree, nodes = result.fitted.hierarchy, result.fitted.nodes
    if tree is None:
        raise ExportError(f"the result in {result.folder} has no tree of groups to nest by; run `cae cluster` again")
    own = tree.nodes(result.fitted.config.n_clusters)
    tops = {i: tree.path(node)[0] for i, node in enumerate(own) if node >= tree.roots}
    # In one list, so that no cluster has the folder of a group above others.
    places = dict.fromkeys(tops.get(record["id"], -1) for record in result.clusters)
    above = [top for top in places if top >= 0]
    names = distinct_names([*(nodes[top].name for top in above), *(record["name"] for record in result.clusters)])
    called = dict(zip(above, names, strict=False))
    return _plan(
        result,
        [
            f"{called[tops[record['id']]]}/{name}" if record["id"] in tops else name
            for record, name in zip(result.clusters, names[len(above) :], strict=True)
        ],
    )


def _plan(result: SavedResult, folders: Sequence[str]) -> Plan:
    places: dict[int, list[Path]] = {record["id"]: [] for record in result.clusters}
    for row, place in result.present():
        places[row["cluster"]].append(place)
    return {
        f"{folder}/{name}": place
        for folder, inside in zip(folders, places.values(), strict=True)
        for name, place in zip(distinct_names(place.name for place in inside), inside, strict=True)
    }
