"""Two results side by side: how far they agree on the images that both have, and what lies elsewhere in the other."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cae.metrics.functional import ari_from_contingency, cluster_to_class, contingency_matrix, nmi_from_contingency
from cae.results.saved import SavedResult


@dataclass(frozen=True)
class ComparedCluster:
    """A cluster, with those of its images that both results have.

    Attributes:
        id: its id in its result.
        name: its name in its result.
        size: its images that both results have.
    """

    id: int
    name: str
    size: int


@dataclass(frozen=True)
class Pair:
    """Clusters that are each other's match; one is None where a cluster has no match.

    Attributes:
        a: the cluster in the first result.
        b: the cluster in the second result.
        shared: images in both.
    """

    a: ComparedCluster | None
    b: ComparedCluster | None
    shared: int


@dataclass(frozen=True)
class Migration:
    """Images that left their cluster: in the second result they are not in the match of where they were.

    Attributes:
        a: their cluster in the first result.
        b: their cluster in the second result.
        rows: rows of the second result's assignments, ascending.
        paths: their paths in the second result.
    """

    a: ComparedCluster
    b: ComparedCluster
    rows: list[int]
    paths: list[str]

    @property
    def size(self) -> int:
        """How many moved."""
        return len(self.rows)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; `dataclasses.asdict` makes it JSON, but for the paths.

    Attributes:
        a: folder of the first result.
        b: folder of the second.
        n_images: number of images that both results have.
        only_a: number of images that only the first has.
        only_b: number of images that only the second has.
        ari: adjusted Rand index in percent.
        nmi: normalised mutual information in percent.
        pairs: every cluster once, matched one to one so that they share as many images as possible; the largest
            first, clusters without a match last.
        moves: the moves from cluster to cluster, the largest first.
    """

    a: Path
    b: Path
    n_images: int
    only_a: int
    only_b: int
    ari: float
    nmi: float
    pairs: list[Pair]
    moves: list[Migration]

    @property
    def moved(self) -> int:
        """How many images moved."""
        return sum(move.size for move in self.moves)


def compare(a: SavedResult, b: SavedResult) -> Comparison:
    """Compare two results as their edits show them.

    Images are matched by the hash of their bytes, and those that are left by their path.

    Args:
        a: the first result.
        b: the second; moves go from the first to the second.

    Raises:
        ValueError: no image is in both.
    """
    a, b = a.edited, b.edited
    rows_a, rows_b = _same_images(a, b)
    if not len(rows_a):
        raise ValueError(f"{a.folder} and {b.folder} have no picture in common; compare results of the same pictures")
    groups_a, labels_a = _groups(a, rows_a)
    groups_b, labels_b = _groups(b, rows_b)
    counts = contingency_matrix(torch.from_numpy(labels_a), torch.from_numpy(labels_b)).numpy()
    match = {i: j for i, j in cluster_to_class(counts).items() if counts[i, j]}
    pairs = [Pair(groups_a[i], groups_b[j], int(counts[i, j])) for i, j in match.items()]
    pairs.sort(key=lambda pair: -pair.shared)
    pairs += [Pair(group, None, 0) for i, group in enumerate(groups_a) if i not in match]
    pairs += [Pair(None, group, 0) for j, group in enumerate(groups_b) if j not in match.values()]
    paths = np.array(b.assignments["path"].to_pylist(), dtype=object)
    # Sort the rows by cell of the table once: searching them for each cell would take cells × N.
    cells = counts.nonzero()
    in_order = rows_b[np.lexsort((rows_b, labels_b, labels_a))]
    moves = [
        Migration(groups_a[i], groups_b[j], rows.tolist(), paths[rows].tolist())
        for i, j, rows in zip(*cells, np.split(in_order, counts[cells].cumsum()[:-1]), strict=True)
        if match.get(i) != j
    ]
    return Comparison(
        a=a.folder,
        b=b.folder,
        n_images=len(rows_a),
        only_a=len(a.assignments) - len(rows_a),
        only_b=len(b.assignments) - len(rows_b),
        ari=100 * ari_from_contingency(counts),
        nmi=100 * nmi_from_contingency(counts),
        pairs=pairs,
        moves=sorted(moves, key=lambda move: -move.size),
    )


def _same_images(a: SavedResult, b: SavedResult) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each result that show the same image, one to one: by content, then by path."""
    free_a, free_b = list(range(len(a.assignments))), list(range(len(b.assignments)))
    pairs: list[tuple[int, int]] = []
    for column in ("sha256", "path"):
        keys_a, keys_b = a.assignments[column].to_pylist(), b.assignments[column].to_pylist()
        waiting: defaultdict[str, deque[int]] = defaultdict(deque)
        for row in free_b:
            waiting[keys_b[row]].append(row)
        found = [
            (row, waiting[keys_a[row]].popleft()) for row in free_a if keys_a[row] is not None and waiting[keys_a[row]]
        ]
        pairs += found
        taken_a, taken_b = {row for row, _ in found}, {row for _, row in found}
        free_a = [row for row in free_a if row not in taken_a]
        free_b = [row for row in free_b if row not in taken_b]
    rows = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _groups(result: SavedResult, rows: np.ndarray) -> tuple[list[ComparedCluster], np.ndarray]:
    """The clusters that some rows are in, and the position of each row's cluster among them, (B,) int64."""
    ids, labels, sizes = np.unique(
        result.assignments["cluster"].to_numpy()[rows], return_inverse=True, return_counts=True
    )
    names = {record["id"]: record["name"] for record in result.clusters}
    groups = [ComparedCluster(id, names[id], size) for id, size in zip(ids.tolist(), sizes.tolist(), strict=True)]
    return groups, labels
