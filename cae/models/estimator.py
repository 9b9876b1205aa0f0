"""CAE on embeddings, as scikit-learn's clusterers work: `CAEClusterer(n_clusters=10, banks=…).fit_predict(X)`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.metadata import version
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

from cae.config import CAEConfig, Preset
from cae.encoders import Encoder, load_encoder
from cae.kernels.exact import exact_products
from cae.method import pipeline
from cae.method.blocks import blockwise
from cae.method.fitted import FittedCAE
from cae.method.kmeans import warn_of_empty
from cae.method.partition import Partition, partition
from cae.metrics.functional import cluster_accuracy, silhouette_score
from cae.text import TextBank, load_banks
from cae.text.vectors import Source, limit_modalities, text_sources
from cae.utils.devices import find_device
from cae.utils.progress import silent

_FAR = 1e15
"""Rows of numbers beyond this, or below its inverse, are scaled: their squares leave the range of float32."""


class CAEClusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Cluster embeddings with CAE, or without texts by its last step alone.

    CAE needs nouns and captions embedded in the same space as the images: give them as `banks`, or give the `encoder`
    that embeds them. With neither, the estimator clusters the directions of the rows of `X`: CAE's last step alone,
    by the graph of neighbours or, with `settings={"clustering": "kmeans"}`, by k-means.

    Parameters are checked in `fit`, as scikit-learn wants it. `check_estimator` passes, except for the checks that ask
    for a single cluster, and with texts for the one whose rows may be zero.

    A PCA before it in a pipeline rounds by the number of threads, of which joblib gives its workers fewer: with
    `n_jobs`, rows on the border of two clusters may come out in the other one. In float64 it rounds far less.

    Args:
        n_clusters: K, at least 2.
        banks: a `cae.text.TextBank` of the space of `X` under `noun` and under `caption`.
        encoder: encoder of the corpora, in place of `banks`: a spec for `cae.encoders.load_encoder` or an `Encoder`.
        nouns: corpus for `encoder`: `imagenet22k`, `wordnet` or a text file; or a file of text vectors of the space of
            `X`, see `cae.text.load_vectors`, which need no encoder.
        captions: corpus for `encoder`: `glosses`, `flickr30k` or a text file; or a file of text vectors. Where one of
            the two is vectors and the other is not given, it is left out.
        preset: preset of `cae.config.CAEConfig`.
        settings: further fields of `CAEConfig`, such as `{"n_init": 5}`.
        random_state: seed of every random choice; None for another one each time.
        device: device to work on: `auto`, `cpu`, `cuda`, …
        progress: whether a bar is shown while an encoder embeds its corpora.

    Attributes:
        labels_: (N,) int64 clusters of the fitted rows, equal to what `predict` gives for them.
        cluster_centers_: (K, D) float32 centroids in the space of the fused embeddings; (K, m * D) for concatenation.
        partition_: the same clusters with the metric that they are compared in, which `predict` and `transform` use.
        fitted_: the `FittedCAE` on the CPU, which knows the clusters' names; None without texts.
        beta_: (N, m) float32 modality weights of Eq. 16, the image first; None without texts.
        n_features_in_: D.

    Examples:
        >>> from sklearn.datasets import make_blobs
        >>> X, y = make_blobs(90, centers=3, n_features=8, random_state=0)
        >>> labels = CAEClusterer(n_clusters=3).fit_predict(X)
        >>> sorted(np.bincount(labels).tolist())
        [30, 30, 30]
    """

    labels_: NDArray[np.int64]
    cluster_centers_: NDArray[np.float32]
    partition_: Partition
    fitted_: FittedCAE | None
    beta_: NDArray[np.float32] | None

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        banks: Mapping[str, TextBank] | None = None,
        encoder: str | Encoder | None = None,
        nouns: Source | None = None,
        captions: Source | None = None,
        preset: Preset = "auto",
        settings: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = 0,
        device: str = "cpu",
        progress: bool = True,
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
        self.progress = progress

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: the version, too."""
        return {**super().__getstate__(), "_cae_version": version("cae-clustering")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load a pickle, with a warning if another version wrote it, as scikit-learn does for its own."""
        written, here = state.pop("_cae_version", "0.1.0"), version("cae-clustering")
        if written != here:
            warnings.warn(
                f"this {type(self).__name__} was pickled by cae {written} and is read by {here}, which may not know "
                "its state: fit it again, or keep models with FittedCAE.save, which later versions read",
                UserWarning,
                stacklevel=2,
            )
        super().__setstate__(state)

    def __sklearn_tags__(self) -> Tags:
        """Embeddings come and go as float32."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Cluster embeddings.

        Args:
            X: (N, D) numbers, N at least K: an array, a tensor, a pandas or polars frame, or a polars column of lists.
                Only the rows' directions matter.
            y: ignored.

        Raises:
            ValueError: a parameter is out of range, a bank is missing or of another width, or `X` holds NaN or too few
                rows.
            EncoderError, TextError: the encoder or its texts cannot be had.
        """
        if not isinstance(self.n_clusters, Integral) or self.n_clusters < 2:
            raise ValueError(f"n_clusters must be a whole number of at least 2, got {self.n_clusters!r}")
        settings = {"seed": self._seed(), **(self.settings or {})}
        config = CAEConfig.from_preset(self.preset, int(self.n_clusters), **settings)
        if self.banks is None and "modalities" not in settings:
            config = limit_modalities(config, text_sources(self.nouns, self.captions))
        x = self._unit_rows(X, reset=True, ensure_min_samples=self.n_clusters)
        banks = text_banks(
            config,
            self.banks,
            self.encoder,
            nouns=self.nouns,
            captions=self.captions,
            dim=x.shape[1],
            progress=self.progress,
        )
        with exact_products(x.device):
            self._fit(x, banks, config)
        return self

    def _fit(self, x: Tensor, banks: Mapping[str, TextBank] | None, config: CAEConfig) -> None:
        if banks is None:
            self.fitted_, self.beta_ = None, None
            found_clusters = partition(x, config)
            labels = _labels(x, found_clusters)
            warn_of_empty(torch.bincount(labels, minlength=config.n_clusters))
        else:
            zero = int((x == 0).all(dim=1).sum())
            if zero:
                raise ValueError(f"{zero} of {len(x)} rows are zero and have no direction to compare with texts")
            fitted, found = pipeline.fit(x, banks, config)
            self.fitted_, self.beta_ = fitted.to("cpu"), found.beta.cpu().numpy()
            found_clusters, labels = fitted.partition, found.cluster
        self.partition_ = found_clusters.to("cpu")
        self.cluster_centers_ = self.partition_.centroids.numpy()
        self.labels_ = labels.cpu().numpy()
        self._n_features_out = len(self.cluster_centers_)

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """The clusters (N,) int64 of embeddings (N, D); for the fitted rows, `labels_`."""
        check_is_fitted(self)
        x = self._unit_rows(X, reset=False)
        with exact_products(x.device):
            if self.fitted_ is None:
                return _labels(x, self.partition_.to(x.device)).cpu().numpy()
            return pipeline.predict(x, self.fitted_.to(x.device)).cluster.cpu().numpy()

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Distances (N, K) float32 of embeddings (N, D) to the clusters, by which `predict` takes the nearest."""
        check_is_fitted(self)
        x = self._unit_rows(X, reset=False)
        with exact_products(x.device):
            z = x if self.fitted_ is None else pipeline.representations(x, self.fitted_.to(x.device))["fused"]
            clusters = self.partition_.to(x.device)
            (distance,) = blockwise(lambda rows: (clusters.distances(rows),), z)
        return distance.cpu().numpy()

    def score(self, X: ArrayLike, y: ArrayLike | None = None) -> float:
        """How good the clusters of some rows are; larger is better, as searches over parameters want it.

        Args:
            X: (N, D) embeddings, as for `predict`.
            y: (N,) known classes of any kind.

        Returns:
            With `y` the accuracy in [0, 1] under the best one-to-one match of clusters to classes; without it the
            silhouette in [-1, 1] by cosine distance.
        """
        labels = self.predict(X)
        if y is None:
            return silhouette_score(self._unit_rows(X, reset=False), labels)
        return cluster_accuracy(labels, np.unique(np.asarray(y), return_inverse=True)[1])

    def _seed(self) -> int:
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _unit_rows(self, X: ArrayLike, **checks: Any) -> Tensor:
        copied = validate_data(self, _dense(X), dtype=[np.float32, np.float64], order="C", copy=True, **checks)
        peak = np.maximum(copied.max(axis=1), -copied.min(axis=1))
        far = (peak > _FAR) | ((peak < 1 / _FAR) & (peak > 0))
        if far.any():
            copied[far] /= peak[far, None]
        x = torch.from_numpy(copied.astype(np.float32, copy=False)).to(find_device(self.device))
        return normalize(x, dim=1, out=x)


def text_banks(
    config: CAEConfig,
    banks: Mapping[str, TextBank] | None,
    encoder: str | Encoder | None,
    *,
    nouns: Source | None,
    captions: Source | None,
    dim: int | None = None,
    progress: bool = True,
) -> Mapping[str, TextBank] | None:
    """The banks given, or those of the texts given, or None where neither texts nor an encoder of them are given.

    Args:
        config: says which modalities are needed.
        banks: text banks by modality.
        encoder: embeds the corpora `nouns` and `captions`, unless their banks are in the cache.
        nouns: corpus for `cae.text.load_corpus`, or text vectors.
        captions: corpus for `cae.text.load_corpus`, or text vectors.
        dim: width of the embeddings, where it is known: another encoder is refused before it embeds any text.
        progress: whether a bar is shown while texts are embedded.

    Raises:
        ValueError: banks and other texts, a corpus without an encoder, or an encoder of another width.
        EncoderError, TextError: the encoder or its texts cannot be had.
    """
    refuse_texts_beside_banks(banks, encoder, nouns, captions)
    if banks is not None or (encoder is None and nouns is None and captions is None):
        return banks

    def load() -> Encoder:
        if encoder is None:
            raise ValueError(
                "nouns and captions that are no vectors have to be embedded: give the encoder that made the embeddings "
                "(encoder=), or files of vectors that it has made (nouns='nouns.npy')"
            )
        loaded = load_encoder(encoder) if isinstance(encoder, str) else encoder
        if dim not in (None, loaded.dim):
            raise ValueError(
                f"X has width {dim}, and the encoder {loaded.spec} makes vectors of width {loaded.dim}: give the "
                "encoder that made X, or vectors of nouns that it has made (nouns=FILE)"
            )
        return loaded

    return load_banks(config.modalities, text_sources(nouns, captions), load, None if progress else silent)


def refuse_texts_beside_banks(banks: object, encoder: object, nouns: object, captions: object) -> None:
    """Refuse texts that would not be used.

    Raises:
        ValueError: banks are given, and an encoder or other texts, too.
    """
    if banks is None:
        return
    if encoder is not None:
        raise ValueError("give banks or an encoder, not both: an encoder embeds its own banks")
    if nouns is not None or captions is not None:
        raise ValueError("give banks, or nouns and captions, not both: banks hold their texts")


def _dense(X: Any) -> Any:
    """What scikit-learn cannot read by itself: tensors that train or are of half precision, and polars' lists.

    Raises:
        ValueError: a sparse tensor, or a polars frame that is not computed yet.
    """
    if isinstance(X, Tensor):
        if X.layout is not torch.strided:
            raise ValueError(f"X is a tensor of layout {X.layout}; pass X.to_dense()")
        return X.detach().float().cpu().numpy()
    if type(X).__module__.startswith("polars"):  # asked by name: polars need not be installed
        if not hasattr(X, "to_numpy"):
            raise ValueError(f"X is a polars {type(X).__name__}, which is not computed yet; pass X.collect()")
        if hasattr(X, "to_series") and X.width == 1:
            X = X.to_series()
        if hasattr(X, "to_list") and X.dtype.is_nested():
            return np.array(X.to_list(), dtype=np.float32)
        return X.to_frame() if hasattr(X, "to_frame") else X
    return X


def _labels(x: Tensor, clusters: Partition) -> Tensor:
    (labels,) = blockwise(lambda rows: (clusters.assign(rows).labels,), x)
    return labels
