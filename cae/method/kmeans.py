"""K-means (Eq. 1, and Eq. 18 by the letter), and the assignment of images to clusters.

K-means runs in two steps. FAISS does the seeding (k-means++) and the restarts on a sample that lies in memory: all
points where there are at most `SAMPLE`. Where there are more, Lloyd's iterations over all of them follow, on every
process over its own share. The sample goes by the images' numbers and sums are of whole numbers, so that neither the
order of the images nor the number of processes makes a difference.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import cosine_similarity, normalize

from cae.kernels import nearest
from cae.kernels.exact import exact_products
from cae.method.blocks import CHUNK_ROWS
from cae.utils.distributed import (
    all_gather_rows,
    all_reduce_count,
    all_reduce_max,
    all_reduce_sum,
    broadcast_from_first,
    is_first,
)
from cae.utils.progress import report_progress, stage

logger = logging.getLogger(__name__)

SAMPLE, SAMPLE_PER_CENTROID = 2**16, 64
"""Most points that FAISS sees: SAMPLE, or SAMPLE_PER_CENTROID per centroid if that is more (FAISS warns below 39)."""

TOLERANCE = 1e-6
"""A run has converged when an iteration lowers the loss by less than this share of it."""


class Assignment(NamedTuple):
    """The clusters of the images.

    Attributes:
        labels: (N,) int64, the nearest centroid.
        runner_up: (N,) int64, the second nearest.
        confidence: (N,) float32 in [0, 1], the simplified silhouette 1 - d_1 / d_2 (Hruschka et al. 2004) with d_1 and
            d_2 the distances to the nearest and second nearest centroid: 0 half-way between two, 1 on the centroid.
            The distance is 1 - cosine if spherical, else squared Euclidean, in the metric if there is one. It is no
            probability: of the images of a fit with few for each cluster it is too high, since they made the centroids
            (figures: benchmarks/README.md).
        similarity: (N,) float32, cosine to the own centroid if spherical or if there is a metric, else minus the
            squared distance.
    """

    labels: Tensor
    runner_up: Tensor
    confidence: Tensor
    similarity: Tensor


@stage("k-means")
def kmeans(
    z: Tensor,
    k: int,
    *,
    spherical: bool,
    n_init: int,
    max_iter: int,
    seed: int,
    index: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Centroids of k-means: k-means++ seeding, the best of `n_init` restarts, every point used.

    Args:
        z: (N, D) on any device, float32 or float16; unit rows if `spherical`. With `group`, only
            this rank's rows.
        k: number of centroids, at most N.
        spherical: keep centroids at unit length, so that the nearest one has the largest cosine.
        n_init: restarts.
        max_iter: most iterations of one run; a run stops earlier once it no longer improves.
        seed: same seed and thread count, same centroids.
        index: (N,) int64, the ids of the images, all different; required with `group`, else 0 to N - 1 by default.
        group: the processes that share the images.

    Returns:
        (k, D) float32 on the device of `z`, the same on every rank, in the order in which the clusters first appear
        among the images by `index`.

    Raises:
        ValueError: fewer points than centroids, NaN or infinity in `z`, or a group without `index`; on every rank.
    """
    check_points(z, k, group)
    n = all_reduce_count(len(z), group)
    size = max(SAMPLE, SAMPLE_PER_CENTROID * k)
    sample = sample_rows(z, index, min(size, n), seed, group)
    centroids = sample.new_empty(k, z.shape[1])
    if is_first(group):
        centroids = _restarts(sample, k, spherical=spherical, n_init=n_init, max_iter=max_iter, seed=seed)
    centroids = broadcast_from_first(centroids.to(z.device), group)
    if n > size:
        centroids = _lloyd(z, centroids, spherical=spherical, max_iter=max_iter, group=group)
    return centroids[order_of_appearance(assign_to_nearest(sample.to(z.device), centroids, spherical=spherical)[0], k)]


def check_points(z: Tensor, k: int, group: ProcessGroup | None) -> None:
    """Refuse what cannot be clustered, on every rank alike.

    Raises:
        ValueError: fewer points than clusters, or NaN or infinity in `z`.
    """
    n = all_reduce_count(len(z), group)
    if n < k:
        raise ValueError(f"cannot make {k} clusters of {n} images; ask for at most {n}")
    if all_reduce_count(sum(not _finite(z[rows]) for rows in _chunks(len(z))), group):
        raise ValueError("the embeddings to cluster hold NaN or infinity")


def sample_rows(z: Tensor, index: Tensor | None, size: int, seed: int, group: ProcessGroup | None = None) -> Tensor:
    """Some rows, the same in the same order however they are spread over ranks.

    Args:
        z: (N, D), this rank's rows.
        index: (N,) int64, the ids of the rows, all different; required with `group`, else 0 to N - 1 by default.
        size: number of rows over all ranks, at most their sum.
        seed: seed of the choice.
        group: the processes that share the rows.

    Returns:
        (size, D) float32 on the CPU, by `index` ascending.

    Raises:
        ValueError: a group without `index`.
    """
    if index is None:
        if group is not None:
            raise ValueError("work over several processes needs the `index` of each image")
        index = torch.arange(len(z))
    index = index.cpu()
    if all_reduce_count(len(z), group) > size:
        # Take the images whose ids have the smallest hashes: knowing the largest of these, each rank finds its own.
        hashes = _hashes(index, seed)
        least = all_gather_rows(hashes.sort().values[:size], group).sort().values[size - 1]
        chosen = hashes <= least
        z, index = z[chosen.to(z.device)], index[chosen]
    rows, index = all_gather_rows(z.detach().cpu().float(), group), all_gather_rows(index, group)
    return rows if (index.diff() > 0).all() else rows[index.argsort(stable=True)]


def _hashes(index: Tensor, seed: int) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014): distinct numbers without any order, (N,) int64."""
    h = index.numpy().astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((h ^ (h >> np.uint64(31))).view(np.int64))


def _restarts(points: Tensor, k: int, *, spherical: bool, n_init: int, max_iter: int, seed: int) -> Tensor:
    """The best of `n_init` runs of FAISS, (k, D) float32."""
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
        early_stop_threshold=TOLERANCE,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
    )
    run.train(points.numpy())
    assert run.centroids is not None  # after training
    return torch.from_numpy(run.centroids.copy())


def _lloyd(z: Tensor, centroids: Tensor, *, spherical: bool, max_iter: int, group: ProcessGroup | None) -> Tensor:
    """Lloyd's iterations over the points of all ranks, from these centroids until the loss stays."""
    before = math.inf
    for iteration in range(max_iter):
        labels, loss = assign_to_nearest(z, centroids, spherical=spherical)
        loss = float(all_reduce_sum(torch.tensor(loss, dtype=torch.float64), group))
        report_progress(iteration / max_iter, f"loss {loss:.6g}")
        if before - loss <= TOLERANCE * loss:
            break
        before = loss
        sums, sizes = cluster_sums(z, labels, len(centroids), group)
        means = sums / sizes.clamp_min(1).unsqueeze(1)
        # A centroid that has lost all its points stays where it is.
        centroids = torch.where(sizes.unsqueeze(1) > 0, normalize(means, dim=1) if spherical else means, centroids)
        centroids = centroids.float()
    return centroids


def assign_to_nearest(z: Tensor, centroids: Tensor, *, spherical: bool) -> tuple[Tensor, float]:
    """The nearest centroid of each row, and the loss that k-means lowers.

    Args:
        z: (N, D) float32 or float16; unit rows if `spherical`.
        centroids: (k, D) float32.
        spherical: compare by cosine, else by Euclidean distance.

    Returns:
        (N,) int64 labels, and the sum of 1 - cosine or of the squared distance over these rows.
    """
    labels, loss = torch.empty(len(z), dtype=torch.int64, device=z.device), 0.0
    for rows in _chunks(len(z)):
        chunk = z[rows].float()
        labels[rows], score = nearest(chunk, centroids, bias=_bias(centroids, spherical))
        distance = 1 - score if spherical else chunk.square().sum(dim=1) - 2 * score
        loss += float(distance.sum(dtype=torch.float64))
    return labels, loss


def cluster_sums(z: Tensor, labels: Tensor, k: int, group: ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
    """The sum of the rows with each label, over all ranks.

    Entries are rounded to multiples of a power of two so small that 63 bits just hold any sum of them: 2^-32 of the
    largest entry for a billion rows. Sums of whole numbers do not depend on their order, so neither a GPU's atomic
    additions nor the ranks' shares of the images change the result.

    Args:
        z: (N, D) float32 or float16.
        labels: (N,) int64 in [0, k).
        k: number of labels.
        group: the processes that share the rows.

    Returns:
        (k, D) float64 sums and (k,) int64 numbers of rows, on the device of `z`.
    """
    n = all_reduce_count(len(z), group)
    largest = max((float(z[rows].abs().max()) for rows in _chunks(len(z))), default=0.0)
    largest = float(all_reduce_max(torch.tensor(largest), group))
    scale = 2.0 ** math.floor(62 - math.log2(max(n * largest, 1e-30)))
    sums = torch.zeros(k, z.shape[1], dtype=torch.int64, device=z.device)
    for rows in _chunks(len(z)):
        sums.index_add_(0, labels[rows], z[rows].double().mul_(scale).round_().long())
    return all_reduce_sum(sums, group).double() / scale, all_reduce_sum(torch.bincount(labels, minlength=k), group)


def order_of_appearance(labels: Tensor, k: int) -> Tensor:
    """The clusters as they first appear, so that their numbers do not depend on how they were found.

    Args:
        labels: (S,) int64 in [0, k).
        k: number of clusters.

    Returns:
        (k,) int64 permutation on the labels' device; clusters that do not appear come last.
    """
    found, first = np.unique(labels.cpu().numpy(), return_index=True)
    seen = np.full(k, len(labels))
    seen[found] = first
    return torch.from_numpy(seen).argsort(stable=True).to(labels.device)


def _chunks(n: int) -> list[slice]:
    return [slice(start, min(start + CHUNK_ROWS, n)) for start in range(0, n, CHUNK_ROWS)]


def _finite(rows: Tensor) -> bool:
    return bool(torch.isfinite(rows).all())


def _bias(centroids: Tensor, spherical: bool) -> Tensor | None:
    """Argmin |z - c|^2 = argmax z.c - |c|^2 / 2, so that one op serves both geometries."""
    return None if spherical else -0.5 * centroids.square().sum(dim=1)


@stage("assignment")
def assign(z: Tensor, centroids: Tensor, metric: Tensor | None = None, *, spherical: bool = False) -> Assignment:
    """Eq. 18's last step: the nearest centroid, with how sure that is.

    Args:
        z: (N, D) float32; unit rows if `spherical`.
        centroids: (K, D) float32 with K at least 2; unit rows if `spherical`.
        metric: (D, d) float32; distances are Euclidean between rows times this matrix. Not with `spherical`.
        spherical: compare by cosine, else by Euclidean distance.
    """
    rows, targets = compared(z, centroids, metric)
    labels, score = nearest(rows, targets, k=2, bias=_bias(targets, spherical))
    distance = 1 - score if spherical else rows.square().sum(dim=1, keepdim=True) - 2 * score
    first, second = distance.clamp_min(0).unbind(dim=1)
    if metric is not None:
        similarity = cosine_similarity(z, centroids[labels[:, 0]])
    else:
        similarity = score[:, 0] if spherical else -first
    return Assignment(labels[:, 0], labels[:, 1], confidence(first, second), similarity)


def confidence(near: Tensor, far: Tensor) -> Tensor:
    """How sure a label is, in [0, 1], of distances of any one shape to the own cluster and to the nearest other."""
    return torch.where(far > 0, 1 - near / far.clamp_min(torch.finfo(far.dtype).tiny), 0.0).clamp(0, 1)


def compared(z: Tensor, centroids: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows (N, D) and centroids (K, D) as distances are taken between them: times the metric (D, d) if there is one."""
    if metric is None:
        return z, centroids
    with exact_products(z.device):
        return z @ metric, centroids @ metric


def warn_of_empty(sizes: Tensor) -> None:
    """Say if clusters came out empty, as where there are fewer different images than clusters.

    Args:
        sizes: (K,) int64 images in each.
    """
    empty = int((sizes == 0).sum())
    if empty:
        logger.warning(
            "%d of %d clusters hold no image: there are not enough different images; ask for fewer clusters",
            empty,
            len(sizes),
        )


def image_kmeans(x: Tensor, k: int, *, n_init: int, max_iter: int, seed: int) -> Tensor:
    """The baseline without texts: labels (N,) of spherical k-means on the image embeddings (N, D)."""
    x = normalize(x, dim=1)
    centroids = kmeans(x, k, spherical=True, n_init=n_init, max_iter=max_iter, seed=seed)
    return nearest(x, centroids).labels
