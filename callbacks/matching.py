"""Matching clusters of successive clusterings, so that they keep their ids."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize, pad

from cae.metrics.functional import contingency_matrix


def overlap(labels: Tensor, previous: Tensor, n_clusters: int) -> Tensor:
    """How many of the same samples each new cluster shares with each previous one: (K, K) int64.

    Args:
        labels: (N,) int64 new clusters.
        previous: (N,) int64 previous clusters of the same samples.
        n_clusters: K.
    """
    counts = contingency_matrix(labels, previous)
    return pad(counts, (0, n_clusters - counts.shape[1], 0, n_clusters - counts.shape[0]))


def match_clusters(similarity: Tensor) -> Tensor:
    """The one-to-one match of new clusters to previous ones with the largest total similarity (Hungarian method).

    Args:
        similarity: (K, K), new clusters in rows, previous ones in columns.

    Returns:
        (K,) int64, for each new cluster the id of its predecessor.
    """
    return torch.from_numpy(linear_sum_assignment(similarity.numpy(), maximize=True)[1])


def cluster_centers(x: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
    """The direction of each cluster's mean: (K, D) float32 unit rows, zero for a cluster without samples.

    Args:
        x: (N, D) float32 unit rows.
        labels: (N,) int64.
        n_clusters: K.
    """
    return normalize(torch.zeros(n_clusters, x.shape[1]).index_add_(0, labels, x), dim=1)
