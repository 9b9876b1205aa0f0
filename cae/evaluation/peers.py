"""Training-free methods of others, for the comparison: what a user could run in place of CAE."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from cae.config import CAEConfig

NTK_TEMPERATURE, NTK_NEIGHBOURS = 0.04, 30
"""The paper's default temperature, which it tunes on each data set, and edges kept of each image."""

_ROWS = 1024


def image_spectral(x: Tensor, k: int, *, seed: int) -> Tensor:
    """Spectral clustering as scikit-learn does it with its defaults but 15 neighbours and K eigenvectors.

    Args:
        x: (N, D) unit image embeddings.
        k: number of clusters.
        seed: seed of the solver's start and of k-means.

    Returns:
        (N,) int64 labels on the CPU.
    """
    from sklearn.cluster import SpectralClustering  # takes a second

    model = SpectralClustering(k, affinity="nearest_neighbors", n_neighbors=15, random_state=seed)
    with _disconnected_or_not():
        return torch.from_numpy(model.fit_predict(x.cpu().double().numpy()).astype(np.int64))


def ntk_sc(x: Tensor, texts: Tensor, config: CAEConfig) -> Tensor:
    """NTK-SC (arXiv 2602.09586): spectral clustering by x·x' times the agreement in what texts the images are near to.

    Our reading of the paper, with one prompt and one temperature for all data sets.

    Args:
        x: (N, D) float32 unit image embeddings.
        texts: (M, D) float32 unit embeddings of the selected nouns.
        config: gives K and the seed.

    Returns:
        (N,) int64 labels on the CPU.
    """
    from sklearn.cluster import spectral_clustering  # takes a second

    n = len(x)
    k = min(NTK_NEIGHBOURS, n - 1)
    near = torch.softmax(x @ texts.T / NTK_TEMPERATURE, dim=1)
    weights: list[NDArray[np.float64]] = []
    neighbours: list[NDArray[np.int32]] = []  # scikit-learn's solver takes no longer ones
    for rows in torch.arange(n, device=x.device).split(_ROWS):
        affinity = (x[rows] @ x.T).clamp_min(0) * (near[rows] @ near.T)
        affinity[torch.arange(len(rows)), rows] = -1  # not with itself
        best = affinity.topk(k)
        weights.append(best.values.clamp_min(0).double().flatten().cpu().numpy())
        neighbours.append(best.indices.int().flatten().cpu().numpy())
    pointers = np.arange(0, n * k + 1, k, dtype=np.int32)
    graph = csr_array((np.concatenate(weights), np.concatenate(neighbours), pointers), (n, n))
    with _disconnected_or_not():
        labels = spectral_clustering(graph.maximum(graph.T), n_clusters=config.n_clusters, random_state=config.seed)
    return torch.from_numpy(labels.astype(np.int64))


@contextmanager
def _disconnected_or_not() -> Iterator[None]:
    """Take the graph as it is: that it may fall into pieces is part of what these methods are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Graph is not fully connected", category=UserWarning)
        yield
