"""One clustering of a sample of embeddings, with the ids of the previous one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cae.callbacks.matching import cluster_centers, match_clusters, overlap
from cae.config import AUTO_N_CLUSTERS, CAEConfig, Preset
from cae.method.cluster_count import count_clusters
from cae.metrics.functional import clustering_scores, silhouette_score, stability
from cae.models.estimator import CAEClusterer
from cae.text import TextBank

COUNTED = 5000
"""Most embeddings from which `n_clusters="auto"` is decided; more would only take longer."""


class ClusteringError(RuntimeError):
    """A validation run could not be clustered; the message names the hook, the key and the shape."""


@dataclass(frozen=True)
class Clustering:
    """The clustering of one validation run.

    Attributes:
        labels: (n,) int64 clusters of the sampled embeddings, in the order of validation.
        centers: (K, D) float32, the direction of each cluster's mean embedding.
        scores: `acc`, `nmi`, `ari` if there are class labels; `silhouette`; `stability`, the ARI of these labels and
            the previous ones, if they are of the same samples; `size_min` and `size_max`; with texts `beta_image`,
            `beta_noun`, `beta_caption`, the mean weights of Eq. 16.
        samples: digest of which samples these are, empty where the loaders' order is not known to be fixed.
    """

    labels: Tensor
    centers: Tensor
    scores: dict[str, float]
    samples: str

    @property
    def sizes(self) -> list[int]:
        """Samples in each of the K clusters."""
        return torch.bincount(self.labels, minlength=len(self.centers)).tolist()


@dataclass(frozen=True)
class SampleClusterer:
    """Clusters a sample with the settings of a `ClusteringCallback`.

    Attributes:
        config: the settings of the method.
        preset: preset that `settings` change.
        settings: fields of `CAEConfig`.
        banks: text banks by modality; empty or None without texts.
        device: device to work on.
    """

    config: CAEConfig
    preset: Preset
    settings: dict[str, Any]
    banks: Mapping[str, TextBank] | None
    device: str

    def cluster(self, x: Tensor, classes: Tensor | None, samples: str, previous: Clustering | None) -> Clustering:
        """Cluster, give the clusters their previous ids, and score them.

        Args:
            x: (n, D) float32 unit rows.
            classes: (n,) int64 known classes, numbered from 0; None without any.
            samples: see `Clustering`.
            previous: the clustering before this one.
        """
        n_clusters = self._cluster_count(x, previous)
        found = CAEClusterer(
            n_clusters,
            banks=self.banks,
            preset=self.preset,
            settings={**self.settings, "modalities": self.config.modalities},
            device=self.device,
        ).fit(x.numpy())
        labels, scores = keep_ids(x, torch.from_numpy(found.labels_), samples, previous)
        if classes is not None:
            scores.update({name: percent / 100 for name, percent in clustering_scores(labels, classes).items()})
        scores["silhouette"] = silhouette_score(x, labels, seed=self.config.seed)
        if found.beta_ is not None:
            weights = found.beta_.mean(axis=0).tolist()
            modalities = ("image", *self.config.modalities)
            scores.update({f"beta_{name}": weight for name, weight in zip(modalities, weights, strict=True)})
        clustering = Clustering(labels, cluster_centers(x, labels, n_clusters), scores, samples)
        scores.update(size_min=min(clustering.sizes), size_max=max(clustering.sizes))
        return clustering

    def _cluster_count(self, x: Tensor, previous: Clustering | None) -> int:
        if self.config.n_clusters != AUTO_N_CLUSTERS:
            return self.config.n_clusters
        if previous is not None:
            return len(previous.centers)
        sample = x[:: -(-len(x) // COUNTED)]
        return count_clusters(sample, seed=self.config.seed).n_clusters


def keep_ids(x: Tensor, labels: Tensor, samples: str, previous: Clustering | None) -> tuple[Tensor, dict[str, float]]:
    """Give each cluster the id of its predecessor: by shared samples if they are the same, else by centers.

    Returns:
        The renamed labels, and `stability` if the samples are the same.
    """
    if previous is None:
        return labels, {}
    scores = dict[str, float]()
    n_clusters = len(previous.centers)
    if samples and samples == previous.samples:
        similarity = overlap(labels, previous.labels, n_clusters)
        scores["stability"] = stability([labels, previous.labels])
    else:
        similarity = cluster_centers(x, labels, n_clusters) @ previous.centers.T
    return match_clusters(similarity)[labels], scores
