"""CAE on embeddings, as scikit-learn's clusterers work: `CAEClusterer(n_clusters=10, banks=…).fit_predict(X)`."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from torch.nn.functional import normalize

from cae import pipeline
from cae.blocks import blockwise
from cae.clustering import assign, kmeans, warn_of_empty
from cae.config import CAEConfig, Preset
from cae.devices import find_device
from cae.encoders import Encoder, load_encoder
from cae.state import FittedCAE
from cae.text import TextBank, load_bank

_FAR = 1e15
"""Rows of numbers beyond this, or below its inverse, are scaled: their squares leave the range of float32."""


class CAEClusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Cluster embeddings with CAE, or without texts by spherical k-means.

    CAE needs nouns and captions embedded in the same space as the images: give them as `banks`, or give the `encoder`
    that embeds them. With neither, the estimator clusters the directions of the rows of `X` by spherical k-means: CAE's
    last step alone, the baseline that `cae evaluate` calls k-means.

    Parameters are checked in `fit`, as scikit-learn wants it. `check_estimator` passes, except for the checks that ask
    for a single cluster, and with texts for the one whose rows may be zero.

    Args:
        n_clusters: K, at least 2.
        banks: a `cae.text.TextBank` of the space of `X` under `noun` and under `caption`.
        encoder: in place of `banks`, a spec for `cae.encoders.load_encoder` or an `Encoder`, which embeds the corpora.
        nouns: corpus for `encoder`: `imagenet22k`, `wordnet` or a text file.
        captions: corpus for `encoder`: `glosses`, `flickr30k` or a text file.
        preset: of `cae.config.CAEConfig`.
        settings: further fields of `CAEConfig`, such as `{"n_init": 5}`.
        random_state: seed of every k-means; None for another one each time.
        device: where to work: `auto`, `cpu`, `cuda`, …

    Attributes:
        labels_: (N,) int64 clusters of the fitted rows, equal to what `predict` gives for them.
        cluster_centers_: (K, D) float32 centroids in the space of the fused embeddings; (K, m * D) for concatenation.
        fitted_: the `FittedCAE` on the CPU, which knows the clusters' names; None without texts.
        beta_: (N, m) float32 modality weights of Eq. 16, the image first; None without texts.
        n_features_in_: D.
    """

    labels_: NDArray[np.int64]
    cluster_centers_: NDArray[np.float32]
    fitted_: FittedCAE | None
    beta_: NDArray[np.float32] | None

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        banks: Mapping[str, TextBank] | None = None,
        encoder: str | Encoder | None = None,
        nouns: str = "imagenet22k",
        captions: str = "glosses",
        preset: Preset = "auto",
        settings: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = 0,
        device: str = "cpu",
    ) -> None:
        self.n_clusters = n_clusters
        self.banks = banks
        self.encoder = encoder
        self.nouns = nouns
        self.captions = captions
        self.preset = preset
        self.settings = settings
        self.random_state = random_state
        self.device = device

    def __sklearn_tags__(self) -> Tags:
        """Embeddings come and go as float32."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Cluster embeddings.

        Args:
            X: (N, D) numbers, N at least K. Only the rows' directions matter.
            y: ignored.

        Raises:
            ValueError: a parameter is out of range, a bank is missing or of another width, or `X` holds NaN or too few
                rows.
            EncoderError, TextError: the encoder or its texts cannot be had.
        """
        # A search over parameters brings NumPy's integers, which are no int.
        if not isinstance(self.n_clusters, Integral) or self.n_clusters < 2:
            raise ValueError(f"n_clusters must be a whole number of at least 2, got {self.n_clusters!r}")
        n_clusters = int(self.n_clusters)
        config = CAEConfig.from_preset(self.preset, n_clusters, **{"seed": self._seed(), **(self.settings or {})})
        x = self._unit_rows(X, reset=True, ensure_min_samples=self.n_clusters)
        banks = text_banks(config, self.banks, self.encoder, nouns=self.nouns, captions=self.captions)
        if banks is None:
            self.fitted_, self.beta_ = None, None
            centroids = kmeans(
                x,
                config.n_clusters,
                spherical=True,
                n_init=config.n_init,
                max_iter=config.kmeans_iter,
                seed=config.seed,
            )
            labels = _nearest(x, centroids)
            warn_of_empty(torch.bincount(labels, minlength=config.n_clusters))
        else:
            zero = int((x == 0).all(dim=1).sum())
            if zero:
                raise ValueError(f"{zero} of {len(x)} rows are zero and have no direction to compare with texts")
            fitted, found = pipeline.fit(x, banks, config)
            self.fitted_, self.beta_ = fitted.to("cpu"), found.beta.cpu().numpy()
            centroids, labels = fitted.centroids, found.cluster
        self.cluster_centers_ = centroids.cpu().numpy()
        self.labels_ = labels.cpu().numpy()
        self._n_features_out = len(self.cluster_centers_)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """The clusters (N,) int64 of embeddings (N, D); for the fitted rows, `labels_`."""
        check_is_fitted(self)
        x = self._unit_rows(X, reset=False)
        if self.fitted_ is None:
            return _nearest(x, self._centroids(x)).cpu().numpy()
        return pipeline.predict(x, self.fitted_.to(x.device)).cluster.cpu().numpy()

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Distances (N, K) float32 of embeddings (N, D) to the centroids: 1 - cosine, or Euclidean if not spherical."""
        check_is_fitted(self)
        x = self._unit_rows(X, reset=False)
        z = x if self.fitted_ is None else pipeline.representations(x, self.fitted_.to(x.device))["fused"]
        centroids = self._centroids(x)
        spherical = self.fitted_ is None or self.fitted_.config.spherical
        (distance,) = blockwise(
            lambda rows: (1 - rows @ centroids.T if spherical else torch.cdist(rows, centroids),), z
        )
        return distance.cpu().numpy()

    def _seed(self) -> int:
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _unit_rows(self, X: ArrayLike, **checks: Any) -> Tensor:
        copied = validate_data(self, X, dtype=[np.float32, np.float64], order="C", copy=True, **checks)
        peak = np.maximum(copied.max(axis=1), -copied.min(axis=1))
        far = (peak > _FAR) | ((peak < 1 / _FAR) & (peak > 0))
        if far.any():
            copied[far] /= peak[far, None]
        x = torch.from_numpy(copied.astype(np.float32, copy=False)).to(find_device(self.device))
        return normalize(x, dim=1, out=x)

    def _centroids(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.cluster_centers_).to(x.device)


def text_banks(
    config: CAEConfig,
    banks: Mapping[str, TextBank] | None,
    encoder: str | Encoder | None,
    *,
    nouns: str,
    captions: str,
) -> Mapping[str, TextBank] | None:
    """The banks given, or those of the encoder given, or None for neither.

    Args:
        config: says which modalities are needed.
        banks: by modality.
        encoder: embeds the corpora `nouns` and `captions`, unless their banks are in the cache.
        nouns: corpus for `cae.text.load_corpus`.
        captions: likewise.

    Raises:
        ValueError: banks and an encoder.
        EncoderError, TextError: the encoder or its texts cannot be had.
    """
    if banks is not None and encoder is not None:
        raise ValueError("give banks or an encoder, not both: an encoder embeds its own banks")
    if encoder is None:
        return banks
    loaded = load_encoder(encoder) if isinstance(encoder, str) else encoder
    sources = {"noun": nouns, "caption": captions}
    return {modality: load_bank(modality, sources[modality], loaded) for modality in config.modalities}


def _nearest(x: Tensor, centroids: Tensor) -> Tensor:
    (labels,) = blockwise(lambda rows: (assign(rows, centroids, spherical=True).labels,), x)
    return labels
