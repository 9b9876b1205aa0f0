"""Another number of clusters for an existing result, out of its tree of groups, without a new fit.

Where images are on all levels is known since the fit, or an update, and saved with the result. So a cut has nothing to
compute: it gives what `cae predict` gives from then on, and cutting at K again brings back what the fit gave. Results
from before that was saved keep their labels, too (`SavedResult.placement`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from cae.method.fitted import FittedCAE, ModelError
from cae.method.hierarchy import Placement
from cae.results.layout import MODEL_FOLDER, PLACEMENT, ResultError, recorded_checksums
from cae.results.representatives import representatives
from cae.results.saved import SavedResult
from cae.results.writing import write_placement, write_tables
from cae.utils.files import committing


def cut(result: SavedResult, n: int) -> None:
    """Bring a result to n clusters, on disk. Edits beside it stay; those that break are `SavedResult.unmatched_edits`.

    Args:
        result: the result as the fit, updates and earlier cuts left it, without edits applied.
        n: number of clusters, one of the levels of its tree.

    Raises:
        ResultError: the result has no tree, or not with so many groups; nothing is changed.
    """
    try:
        fitted = result.fitted.cut(n)
    except ModelError as error:
        raise ResultError(f"{result.folder}: {error}") from error
    placement = result.placement
    assignments = _placed(result.assignments, placement, fitted)
    clusters = _records(assignments, fitted)
    with committing(result.folder) as draft:
        fitted.save(draft / MODEL_FOLDER)
        if PLACEMENT not in recorded_checksums(result.run):
            write_placement(draft, placement)  # so that the next cut need not make it
        write_tables(draft, assignments, clusters, _run(result.run, fitted), fitted)


def _placed(table: pa.Table, placement: Placement, fitted: FittedCAE) -> pa.Table:
    """The assignments at another level."""
    assert fitted.hierarchy is not None  # it was cut
    found = fitted.hierarchy.at(fitted.config.n_clusters, placement)
    names = pa.array([cluster.name for cluster in fitted.clusters], pa.string())
    columns = {field: pa.array(values.numpy()) for field, values in found._asdict().items()}
    columns["cluster"] = columns.pop("labels")
    columns["name"] = names.take(columns["cluster"])
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table.combine_chunks()


def _records(assignments: pa.Table, fitted: FittedCAE) -> list[dict[str, Any]]:
    """One record per cluster, with its most typical images."""
    labels, paths = assignments["cluster"].to_numpy(), assignments["path"].to_pylist()
    hashes = assignments["sha256"].to_pylist()
    by_similarity = np.argsort(-assignments["similarity"].to_numpy(), kind="stable")
    order = by_similarity[np.argsort(labels[by_similarity], kind="stable")]
    members = np.split(order, np.cumsum(np.bincount(labels, minlength=len(fitted.clusters)))[:-1])
    return [
        {
            **asdict(cluster),
            "size": len(rows),
            "representatives": [paths[row] for row in representatives(rows.tolist(), paths, hashes)],
        }
        for cluster, rows in zip(fitted.clusters, members, strict=True)
    ]


def _run(run: dict[str, Any], fitted: FittedCAE) -> dict[str, Any]:
    """What `run.json` says after the cut. Scores are of the level that was fitted, and come back with it."""
    tree = fitted.hierarchy
    assert tree is not None  # it was cut
    scores = run.get("scores_of_fit", run.get("scores", {}))
    rest = {key: value for key, value in run.items() if key not in ("scores", "scores_of_fit", "cut_from")}
    at_fit = fitted.config.n_clusters == tree.n_clusters
    now = {"scores": scores} if at_fit else {"scores_of_fit": scores, "cut_from": tree.n_clusters}
    return {**rest, "config": asdict(fitted.config), **now}
