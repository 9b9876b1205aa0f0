"""Eq. 18: from z to K clusters, by the graph of neighbours or by k-means as in the paper."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cae.config import CAEConfig
from cae.method.kmeans import Assignment, assign, compared, kmeans
from cae.method.spectral import spectral


@dataclass(frozen=True)
class Partition:
    """K clusters of the space of z: what is needed to label an image.

    Attributes:
        centroids: (K, D) float32, one for each cluster; unit rows if compared by cosine.
        metric: (D, d) float32 of `cae.method.spectral.Discriminants`, or None where z is compared as it is.
        spherical: compare by cosine; without a metric only.
    """

    centroids: Tensor
    metric: Tensor | None
    spherical: bool

    def to(self, device: torch.device | str) -> Self:
        """The same clusters with their tensors on `device`."""
        metric = self.metric if self.metric is None else self.metric.to(device)
        return replace(self, centroids=self.centroids.to(device), metric=metric)

    def distances(self, z: Tensor) -> Tensor:
        """(N, K) float32 distances of z (N, D) float32 to the centroids: 1 - cosine, or Euclidean if not spherical."""
        if self.spherical:
            return 1 - z @ self.centroids.T
        return torch.cdist(*compared(z, self.centroids, self.metric))

    def assign(self, z: Tensor) -> Assignment:
        """The cluster of each row of z (N, D) float32, with how sure that is."""
        return assign(z, self.centroids, self.metric, spherical=self.spherical)


def partition(
    z: Tensor,
    config: CAEConfig,
    *,
    index: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Partition:
    """Cluster z.

    Args:
        z: (N, D) on any device, float32 or float16; unit rows if `config.spherical`. With `group`,
            only this rank's rows.
        config: gives K, the kind of clustering and its settings. Where the graph of neighbours does not
            separate K clusters, as with few different images, k-means is used.
        index: (N,) int64, the ids of the images, all different; required with `group`, else 0 to N - 1 by default.
        group: the processes that share the images; every rank gets the same.

    Raises:
        ValueError: fewer points than clusters, NaN or infinity in `z`, or a group without `index`; on every rank.
    """
    if config.clustering == "spectral":
        found = spectral(z, config.n_clusters, seed=config.seed, index=index, group=group)
        if found is not None:
            return Partition(found.centroids, found.metric, spherical=False)
    centroids = kmeans(
        z,
        config.n_clusters,
        spherical=config.spherical,
        n_init=config.n_init,
        max_iter=config.kmeans_iter,
        seed=config.seed,
        index=index,
        group=group,
    )
    return Partition(centroids, None, config.spherical)
