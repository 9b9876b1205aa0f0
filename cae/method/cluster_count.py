"""`n_clusters="auto"`: how many groups there are, decided without labels.

The criterion is the modularity (Newman & Girvan 2004) of the spectral partition on its graph of nearest neighbours:
the share of neighbours that stay together, less what it would be by chance. Too few clusters leave chance high, too
many cut neighbours apart. Where groups fall into sub-groups the curve is flat, and the finest of the partitions that
are about as good as the best is taken. Other criteria that were tried, with figures: benchmarks/README.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from cae.method.graph import neighbour_graph
from cae.method.spectral import cluster_qr, leading_eigenvectors, whitened
from cae.utils.progress import stage

SLACK = 0.05
"""A finer partition counts as about as good if its modularity is at least best - SLACK * (1 - best)."""

DROP = 0.95
"""The search ends once `PATIENCE` counts in a row have less than this share of the best modularity."""
PATIENCE = 6

FEWEST = 6
"""Images that it takes."""

FIRST_VECTORS = 32
"""Eigenvectors that are computed at first; doubled whenever more are needed."""


class ClusterCount(NamedTuple):
    """How many clusters, and why."""

    n_clusters: int
    """K."""
    curve: dict[int, float]
    """Modularity by number of clusters, ascending."""
    labels: Tensor
    """(N,) int64 labels of the partition into K."""


@stage("cluster count")
def count_clusters(z: Tensor, *, seed: int) -> ClusterCount:
    """The number of clusters by modularity.

    Args:
        z: (N, D) float32 unit rows; a sample of some thousand is enough. N at least `FEWEST`.
        seed: seed of the eigen-solver's start.

    Raises:
        ValueError: too few images for groups to show, or images that are all the same.
    """
    if len(z) < FEWEST:
        raise ValueError(
            f"the number of clusters cannot be found out from so few images ({len(z)}, it takes {FEWEST}); add some, "
            "or give the number (n_clusters, --clusters)"
        )
    different = len(z.unique(dim=0))
    if different == 1:
        raise ValueError(f"{len(z)} images that are all the same have no number of clusters; add others")
    rows = whitened(z)
    graph = neighbour_graph(rows)
    vectors = leading_eigenvectors(graph, rows, min(FIRST_VECTORS, len(z)), seed)
    curve: dict[int, float] = {}
    partitions: dict[int, NDArray[np.int64]] = {}
    for k in _counts(min(len(z) // 3, different)):
        if k > vectors.shape[1]:
            vectors = leading_eigenvectors(graph, rows, min(2 * vectors.shape[1], len(z)), seed)
        partitions[k] = cluster_qr(vectors[:, :k])
        curve[k] = _modularity(graph, partitions[k], k)
        best = max(curve.values())
        if len(curve) > PATIENCE and max(list(curve.values())[-PATIENCE:]) < DROP * best:
            break
    chosen = max(k for k, value in curve.items() if value >= best - SLACK * (1 - best))
    return ClusterCount(chosen, curve, torch.from_numpy(partitions[chosen]))


def _counts(most: int) -> list[int]:
    """2, 3, … 20, then steps of a tenth, up to `most`."""
    counts = [2]
    while counts[-1] < most:
        counts.append(max(counts[-1] + 1, round(1.1 * counts[-1])) if counts[-1] >= 20 else counts[-1] + 1)
    return [count for count in counts if count <= max(most, 2)]


def _modularity(graph: csr_array, labels: np.ndarray, k: int) -> float:
    """sum_c (e_cc - (sum_d e_cd)^2) with e_cd the share of the edges' weight between clusters c and d."""
    member = csr_array((np.ones(len(labels)), (np.arange(len(labels)), labels)), shape=(len(labels), k))
    e = (member.T @ graph @ member).toarray() / graph.sum()
    return float(np.trace(e) - (e.sum(axis=1) ** 2).sum())
