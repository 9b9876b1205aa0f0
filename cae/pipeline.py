"""CAE from embeddings to named clusters. Read this file first: it is the whole method, one stage a line.

    images ─ encoder ─▶ X (N, D) ─ k-means ─▶ centers P (n, D)                     Eq. 1     semantic_space
    banks of nouns and captions ─ retrieve(P) ─▶ U, V (M, D)                        Eq. 2-3   semantic_space
    X, U ─ Sinkhorn ─▶ potentials g_u;   X, V ─▶ g_v                                Eq. 4-6   transport
    x, U, g_u ─▶ noun counterpart x^u;   x, V, g_v ─▶ caption counterpart x^v       Eq. 7-8   transport
    x, x^u, x^v ─ prototype-weighted fusion ─▶ z                                    Eq. 14-17 fusion
    z ─ k-means ─▶ centroids, labels                                                Eq. 18    clustering
    labels, U, V ─▶ names                                                                     naming

`fit` sees all images and leaves a small state. `predict` takes one image after the other through the same stages: the
plan's row for an image depends on that image and the potentials g alone. So the labels that `fit` reports are the
labels that `predict` gives, for any batch size and order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cae.auto import SAMPLE, Probe, choose, random_rows
from cae.blocks import blockwise
from cae.cluster_count import count_clusters
from cae.clustering import assign, kmeans
from cae.config import UNKNOWN, CAEConfig
from cae.fusion import fuse_modalities, modality_means
from cae.kernels import nearest
from cae.naming import describe_clusters
from cae.semantic_space import select_texts, semantic_centers
from cae.state import FittedCAE, SelectedTexts
from cae.text import TextBank
from cae.transport import column_potentials, text_counterparts


class Prediction(NamedTuple):
    """What is known of each of N images.

    Attributes:
        cluster: (N,) int64 labels.
        confidence: (N,) float32 in [0, 1], 0 half-way between two clusters (`cae.clustering.Assignment`).
        runner_up: (N,) int64, the second nearest cluster.
        similarity: (N,) float32, closeness to the own centroid (`cae.clustering.Assignment`).
        beta: (N, m) float32 modality weights of Eq. 16, the image first, then `config.modalities`; rows sum to 1.
    """

    cluster: Tensor
    confidence: Tensor
    runner_up: Tensor
    similarity: Tensor
    beta: Tensor


def fit(
    x: Tensor,
    banks: Mapping[str, TextBank],
    config: CAEConfig,
    provenance: Mapping[str, Any] | None = None,
    *,
    select_on: Tensor | None = None,
) -> tuple[FittedCAE, Prediction]:
    """Cluster N images, end to end.

    Args:
        x: (N, D) float32 unit image embeddings, on the device that shall do the work.
        banks: a `TextBank` of the same encoder for each of `config.modalities`.
        config: the settings.
        provenance: kept in the state as it is.
        select_on: (N', D) float32 unit embeddings of other images, whose centers select the texts in place of the
            images' own: TAC selects on the training split and clusters the test split.

    Returns:
        The fitted state and the predictions for the same images.

    Raises:
        ValueError: fewer images than clusters, rows that are not finite or not unit, or a bank of another width.
    """
    _check(x, banks, config)
    provenance = dict(provenance or {})
    if config.n_clusters == UNKNOWN:
        config, provenance["cluster_count"] = _find_cluster_count(x, banks, config, select_on)
    texts = _select(x if select_on is None else select_on, banks, config)
    if config.fusion == "auto":
        config, provenance["auto"] = choose(
            x,
            config,
            transport=lambda sample, candidate: _transport(sample, texts, candidate)[1],
            group=lambda parts, candidate: _group(parts, candidate)[2].cluster,
        )
    selected, parts = _transport(x, texts, config)
    means, centroids, prediction = _group(parts, config)
    clusters = describe_clusters(x, prediction.cluster, selected, banks, config)
    return FittedCAE(config, len(x), selected, means, centroids, clusters, provenance), prediction


def predict(x: Tensor, fitted: FittedCAE) -> Prediction:
    """Label images by a fitted state.

    Args:
        x: (B, D) float32 unit image embeddings of the fitted encoder, on the state's device, B at least 1.
        fitted: from `fit`.
    """
    parts = _counterparts(x, fitted.selected, fitted.config, fitted.n_images)
    return _place(parts, fitted.means, fitted.centroids, fitted.config)


def representations(x: Tensor, fitted: FittedCAE) -> dict[str, Tensor]:
    """The images as each step of the method sees them (Figure 5 of the paper).

    Args:
        x: (B, D) float32 unit image embeddings, B at least 1.
        fitted: from `fit`.

    Returns:
        `image`, each of `config.modalities`, and `fused`, which the last k-means saw; (B, D) each, `fused` wider for
        concatenation.
    """
    parts = _counterparts(x, fitted.selected, fitted.config, fitted.n_images)
    (z,) = blockwise(lambda *rows: fuse_modalities(rows, fitted.means, fitted.config)[:1], *parts)
    return dict(zip(("image", *fitted.config.modalities, "fused"), (*parts, z), strict=True))


def top_texts(x: Tensor, selected: SelectedTexts, k: int) -> Tensor:
    """The texts that carry most of each image's transport plan.

    Args:
        x: (B, D) float32 unit image embeddings.
        selected: one modality of a fitted state.
        k: how many, at most M.

    Returns:
        (B, k) int64 indices into `selected.texts`, the heaviest first.
    """
    # t_ij grows with x_i.u_j + g_j, so no softmax is needed to rank.
    return nearest(x, selected.embeddings, k=k, bias=selected.g).labels.reshape(len(x), k)


def _check(x: Tensor, banks: Mapping[str, TextBank], config: CAEConfig) -> None:
    if x.ndim != 2:
        raise ValueError(f"expected image embeddings (N, D), got a tensor of shape {tuple(x.shape)}")
    if len(x) < config.n_clusters:
        raise ValueError(f"cannot make {config.n_clusters} clusters of {len(x)} images; ask for fewer clusters")
    if not torch.isfinite(x).all():
        broken = int((~torch.isfinite(x).all(dim=1)).sum())
        raise ValueError(f"{broken} of {len(x)} image embeddings hold NaN or infinity")
    for modality in config.modalities:
        if modality not in banks:
            raise ValueError(f"the {modality} bank is missing; got banks for {', '.join(banks) or 'nothing'}")
        if banks[modality].embeddings.shape[1] != x.shape[1]:
            raise ValueError(
                f"the {modality} bank has width {banks[modality].embeddings.shape[1]}, the images {x.shape[1]}: "
                "embed both with the same encoder"
            )


def _find_cluster_count(
    x: Tensor, banks: Mapping[str, TextBank], config: CAEConfig, select_on: Tensor | None
) -> tuple[CAEConfig, dict[str, Any]]:
    """The settings with K filled in, and a record for people: `chosen`, `from` and the `curves`.

    The images alone and the fused embeddings each have a K of their own; the held-out probe of `cae.auto` says whose to
    believe.
    """
    sample = random_rows(x, SAMPLE, config.seed)
    counts = {"image": count_clusters(sample, max_iter=config.kmeans_iter, seed=config.seed)}
    config = replace(config, n_clusters=counts["image"].n_clusters)
    fixed = replace(config, fusion="prototype") if config.fusion == "auto" else config
    texts = _select(x if select_on is None else select_on, banks, config)
    _, parts = _transport(sample, texts, fixed)
    means = modality_means(parts, fixed)
    (z,) = blockwise(lambda *rows: fuse_modalities(rows, means, fixed)[:1], *parts)
    counts["fused"] = count_clusters(normalize(z, dim=1), max_iter=config.kmeans_iter, seed=config.seed)
    probe = Probe(sample)
    scores = {source: probe.score(count.labels, count.n_clusters) for source, count in counts.items()}
    source = max(scores, key=lambda name: scores[name])
    record = {
        "chosen": counts[source].n_clusters,
        "from": source,
        "criterion": "modularity of the partition on the graph of nearest neighbours, by number of clusters",
        "curves": {name: {str(k): round(q, 4) for k, q in count.curve.items()} for name, count in counts.items()},
    }
    return replace(config, n_clusters=counts[source].n_clusters), record


def _select(x: Tensor, banks: Mapping[str, TextBank], config: CAEConfig) -> dict[str, tuple[list[str], Tensor]]:
    """Eq. 1-3: the texts of U and V, and their unit embeddings (M, D) on the images' device."""
    centers = semantic_centers(x, config)
    selected = {}
    for modality in config.modalities:
        bank = banks[modality]
        chosen = select_texts(bank.embeddings, centers, config).cpu()
        u = normalize(bank.embeddings[chosen].float(), dim=1).to(x.device)
        selected[modality] = [bank.texts[j] for j in chosen.tolist()], u
    return selected


def _transport(
    x: Tensor, texts: Mapping[str, tuple[list[str], Tensor]], config: CAEConfig
) -> tuple[dict[str, SelectedTexts], tuple[Tensor, ...]]:
    """Eq. 4-11: the texts with their potentials, and x with its counterparts."""
    selected = {
        modality: SelectedTexts(names, u, column_potentials(x, u, config)) for modality, (names, u) in texts.items()
    }
    return selected, _counterparts(x, selected, config, n_fitted=len(x))


def _group(parts: tuple[Tensor, ...], config: CAEConfig) -> tuple[Tensor, Tensor, Prediction]:
    """Eq. 14-18: modality means, centroids and where each image goes."""
    means = modality_means(parts, config)
    (z,) = blockwise(lambda *rows: fuse_modalities(rows, means, config)[:1], *parts)
    centroids = kmeans(
        z,
        config.n_clusters,
        spherical=config.spherical,
        n_init=config.n_init,
        max_iter=config.kmeans_iter,
        seed=config.seed,
    )
    return means, centroids, _place(parts, means, centroids, config)


def _counterparts(
    x: Tensor, selected: Mapping[str, SelectedTexts], config: CAEConfig, n_fitted: int
) -> tuple[Tensor, ...]:
    """x, and its counterpart in each modality: m tensors (N, D)."""
    return blockwise(
        lambda rows: (
            rows,
            *(text_counterparts(rows, texts.embeddings, texts.g, config, n_fitted) for texts in selected.values()),
        ),
        x,
    )


def _place(parts: tuple[Tensor, ...], means: Tensor, centroids: Tensor, config: CAEConfig) -> Prediction:
    """Fusion and nearest centroid, row by row."""

    def stage(*rows: Tensor) -> tuple[Tensor, ...]:
        z, beta = fuse_modalities(rows, means, config)
        found = assign(z, centroids, spherical=config.spherical)
        return found.labels, found.confidence, found.runner_up, found.similarity, beta

    return Prediction(*blockwise(stage, *parts))
