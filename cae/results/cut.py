"""Another number of clusters for an existing result, out of its tree of groups, without a new fit.

The labels of a level follow from the leaf that the fit, or an update, gave each image; so they are those that
`cae predict` gives from then on, and cutting at K again brings back the labels of the fit. How sure a label is comes
from the saved embeddings, which are rounded to 16 bits, and may differ from a prediction in the third digit.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import normalize

from cae.method.fitted import FittedCAE, ModelError
from cae.method.naming import N_REPRESENTATIVES
from cae.method.pipeline import predict
from cae.results.layout import MODEL_FOLDER, ResultError
from cae.results.saved import SavedResult
from cae.results.writing import write_tables
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
    assignments = _placed(result, fitted)
    clusters = _records(assignments, fitted)
    with committing(result.folder) as draft:
        fitted.save(draft / MODEL_FOLDER)
        write_tables(draft, assignments, result.embeddings, clusters, _run(result.run, fitted), fitted)


def _placed(result: SavedResult, fitted: FittedCAE) -> pa.Table:
    """The assignments at another level."""
    tree, table = fitted.hierarchy, result.assignments
    assert tree is not None  # it was cut
    leaf = result.leaves
    labels = tree.cluster_of_leaf(fitted.config.n_clusters)[leaf]
    found = predict(normalize(result.embeddings.float(), dim=1), fitted)
    # Rounding can move an image across a border between clusters: then its confidence is 0.
    crossed = found.cluster != labels
    columns = {
        "cluster": labels.numpy(),
        "name": pa.array([fitted.clusters[label].name for label in labels.tolist()], pa.string()),
        "confidence": torch.where(crossed, 0.0, found.confidence).numpy(),
        "similarity": found.similarity.numpy(),
        "runner_up": torch.where(crossed, found.cluster, found.runner_up).numpy(),
    }
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return table.combine_chunks()


def _records(assignments: pa.Table, fitted: FittedCAE) -> list[dict[str, Any]]:
    """One record per cluster, with its most typical images."""
    labels, paths = assignments["cluster"].to_numpy(), assignments["path"].to_pylist()
    by_similarity = np.argsort(-assignments["similarity"].to_numpy(), kind="stable")
    order = by_similarity[np.argsort(labels[by_similarity], kind="stable")]
    members = np.split(order, np.cumsum(np.bincount(labels, minlength=len(fitted.clusters)))[:-1])
    return [
        {
            **asdict(cluster),
            "size": len(rows),
            "representatives": [paths[row] for row in rows[:N_REPRESENTATIVES].tolist()],
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
