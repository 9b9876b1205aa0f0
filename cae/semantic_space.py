"""Semantic space construction: which texts are relevant to these images (Eq. 1-3)."""

from __future__ import annotations

import torch
from torch import Tensor

from cae.clustering import kmeans
from cae.config import CAEConfig
from cae.kernels import nearest, retrieve
from cae.stopwatch import stage


def n_centers(n_images: int, config: CAEConfig) -> int:
    """How many semantic centers: N / 300 as in the paper, 3 K where that is below K (TAC's code), at most N."""
    n = round(n_images / config.images_per_center)
    return min(n if n >= config.n_clusters else 3 * config.n_clusters, n_images)


@stage("centers")
def semantic_centers(x: Tensor, config: CAEConfig) -> Tensor:
    """Eq. 1: the mean image embedding of each k-means cell.

    Args:
        x: (N, D) float32 unit image embeddings.
        config: gives the number of centers and the seed.

    Returns:
        P (n, D) float32, means of unit vectors and so shorter than 1 where a cell is wide.
    """
    n = n_centers(len(x), config)
    # One restart: the centers only pick texts, and k-means++ seeding already spreads them.
    centroids = kmeans(x, n, spherical=True, n_init=1, max_iter=config.kmeans_iter, seed=config.seed)
    # On the CPU, where k-means ran: CUDA adds rows in no fixed order, and the same seed would give other centers.
    cells, sizes = torch.unique(nearest(x, centroids).labels.cpu(), return_inverse=True, return_counts=True)[1:]
    sums = torch.zeros(len(sizes), x.shape[1], dtype=torch.float64).index_add_(0, cells, x.cpu().double())
    return (sums / sizes.unsqueeze(1)).to(x)


@stage("retrieval")
def select_texts(texts: Tensor, centers: Tensor, config: CAEConfig) -> Tensor:
    """Eq. 2-3: the union over centers of the texts most probably theirs.

    Args:
        texts: (T, D) unit text embeddings of a bank, any float dtype.
        centers: (n, D) float32 from `semantic_centers`.
        config: gives `top_k` and the kind of retrieval.

    Returns:
        (M,) int64 indices into the bank, ascending, M at most n * top_k.
    """
    return retrieve(texts.to(centers.device), centers, top_k=config.top_k, mode=config.retrieval)
