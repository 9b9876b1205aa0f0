"""K-means (Eq. 1 and Eq. 18) and the assignment of images to centroids."""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cae.kernels import nearest
from cae.stopwatch import stage


class Assignment(NamedTuple):
    """Where the images go.

    Attributes:
        labels: (N,) int64, the nearest centroid.
        runner_up: (N,) int64, the second nearest.
        confidence: (N,) float32 in [0, 1], the simplified silhouette 1 - d_1 / d_2 (Hruschka et al. 2004) with d_1 and
            d_2 the distances to the nearest and second nearest centroid: 0 half-way between two, 1 on the centroid.
            The distance is 1 - cosine if spherical, else squared Euclidean.
        similarity: (N,) float32, cosine to the own centroid if spherical, else minus the squared distance.
    """

    labels: Tensor
    runner_up: Tensor
    confidence: Tensor
    similarity: Tensor


@stage("k-means")
def kmeans(z: Tensor, k: int, *, spherical: bool, n_init: int, max_iter: int, seed: int) -> Tensor:
    """Centroids of k-means through FAISS: every point used, k-means++ seeding, the best of `n_init` restarts.

    Args:
        z: (N, D) float32 on any device; unit rows if `spherical`.
        k: number of centroids, at most N.
        spherical: keep centroids at unit length, so that the nearest one has the largest cosine.
        n_init: restarts.
        max_iter: most iterations of one run; a run stops earlier once it no longer improves.
        seed: same seed and thread count, same centroids.

    Returns:
        (k, D) float32 on the device of `z`.

    Raises:
        ValueError: fewer points than centroids, or NaN or infinity in `z`.
    """
    points = np.ascontiguousarray(z.detach().cpu().numpy(), dtype=np.float32)
    if len(points) < k:
        raise ValueError(f"cannot make {k} clusters of {len(points)} images; ask for at most {len(points)}")
    if not np.isfinite(points).all():
        raise ValueError("the embeddings to cluster hold NaN or infinity")
    run = faiss.Kmeans(
        points.shape[1],
        k,
        spherical=spherical,
        nredo=n_init,
        niter=max_iter,
        seed=seed,
        # FAISS trains on 256 points per centroid unless told otherwise, and warns below 39.
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
        early_stop_threshold=1e-6,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
    )
    run.train(points)
    assert run.centroids is not None  # after training
    return torch.from_numpy(run.centroids.copy()).to(z.device)


@stage("assignment")
def assign(z: Tensor, centroids: Tensor, *, spherical: bool) -> Assignment:
    """Eq. 18's last step: the nearest centroid, with how sure that is.

    Args:
        z: (N, D) float32; unit rows if `spherical`.
        centroids: (K, D) float32 with K at least 2; unit rows if `spherical`.
        spherical: compare by cosine, else by Euclidean distance.
    """
    # argmin |z - c|^2 = argmax z.c - |c|^2 / 2, so that one op serves both geometries.
    bias = None if spherical else -0.5 * centroids.square().sum(dim=1)
    labels, score = nearest(z, centroids, k=2, bias=bias)
    distance = 1 - score if spherical else z.square().sum(dim=1, keepdim=True) - 2 * score
    first, second = distance.clamp_min(0).unbind(dim=1)
    confidence = torch.where(second > 0, 1 - first / second.clamp_min(torch.finfo(second.dtype).tiny), 0.0)
    similarity = score[:, 0] if spherical else -first
    return Assignment(labels[:, 0], labels[:, 1], confidence, similarity)


def image_kmeans(x: Tensor, k: int, *, n_init: int, max_iter: int, seed: int) -> Tensor:
    """The baseline without texts: labels (N,) of spherical k-means on the image embeddings (N, D)."""
    x = normalize(x, dim=1)
    centroids = kmeans(x, k, spherical=True, n_init=n_init, max_iter=max_iter, seed=seed)
    return nearest(x, centroids).labels
