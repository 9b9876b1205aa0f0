"""CAE from embeddings to named clusters. Read this file first: it is the whole method, one line per stage.

    images ─ encoder ─▶ X (N, D) ─ k-means ─▶ centers P (n, D)                     Eq. 1     semantic_space
    banks of nouns and captions ─ retrieve(P) ─▶ U, V (M, D)                        Eq. 2-3   semantic_space
    X, U ─ Sinkhorn ─▶ potentials g_u;   X, V ─▶ g_v                                Eq. 4-6   transport
    x, U, g_u ─▶ noun counterpart x^u;   x, V, g_v ─▶ caption counterpart x^v       Eq. 7-8   transport
    x, x^u, x^v ─ prototype-weighted fusion ─▶ z                                    Eq. 14-17 fusion
    z ─ graph of neighbours, or k-means ─▶ clusters, labels                         Eq. 18    partition
    z, clusters ─ graph of neighbours ─▶ tree of groups, coarse to fine                       hierarchy
    labels, U, V ─▶ names                                                                     naming

Before potentials are found, settings that are left to the data (how much the texts may weigh, how many clusters there
are) are decided on a sample, which goes through the same stages: `auto`.

`fit` sees all images and leaves a small state. `predict` takes one image after the other through the same stages: the
plan's row for an image depends on that image and the potentials g alone. So the labels that `fit` reports are the
labels that `predict` gives, for any batch size and order.

`fit` may be shared between processes, each with some of the images: what is summed over images (cells of k-means,
column sums of the plan, means) is reduced, everything else is the same on all of them. Of N images it holds x, which
may be mapped from disk, and z; counterparts are made again, block by block, where they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cae.config import AUTO_N_CLUSTERS, CAEConfig
from cae.kernels import nearest
from cae.kernels.checks import UNIT_TOLERANCE
from cae.kernels.exact import exact_products
from cae.method import stages
from cae.method.auto import decide, sample_size
from cae.method.blocks import CHUNK_ROWS, blockwise
from cae.method.fitted import FittedCAE, SelectedTexts
from cae.method.fusion import fuse_modalities
from cae.method.hierarchy import Placement, grow
from cae.method.kmeans import sample_rows, warn_of_empty
from cae.method.naming import describe_tree
from cae.method.partition import partition
from cae.text import TextBank
from cae.utils.distributed import all_reduce_count, all_reduce_sum, first_occurrence_mask, is_first


class Prediction(NamedTuple):
    """What is known of each of N images.

    Attributes:
        cluster: (N,) int64 labels.
        confidence: (N,) float32 in [0, 1], 0 half-way between two clusters (`cae.method.kmeans.Assignment`).
        runner_up: (N,) int64, the second nearest cluster.
        similarity: (N,) float32, closeness to the own centroid (`cae.method.kmeans.Assignment`).
        beta: (N, m) float32 modality weights of Eq. 16, the image first, then `config.modalities`; rows sum to 1.
        leaf: (N,) int64, the leaf of the tree of groups, from which all its levels follow; the label without a tree.
    """

    cluster: Tensor
    confidence: Tensor
    runner_up: Tensor
    similarity: Tensor
    beta: Tensor
    leaf: Tensor


def fit(
    x: Tensor,
    banks: Mapping[str, TextBank],
    config: CAEConfig,
    provenance: Mapping[str, Any] | None = None,
    *,
    select_on: Tensor | None = None,
    index: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> tuple[FittedCAE, Prediction]:
    """Cluster N images, end to end.

    Args:
        x: (N, D) float32 or float16 unit image embeddings, on the device to work on. With `group`, only this
            rank's rows, of which there may be none.
        banks: a `TextBank` of the same encoder for each of `config.modalities`.
        config: the settings.
        provenance: record that is kept in the state as it is.
        select_on: (N', D) float32 unit embeddings of other images, whose centers select the texts in place of the
            images' own: TAC selects on the training split and clusters the test split. Not with a group.
        index: (N,) int64, the ids of the images, all different: with them the result does not depend on the order of
            the images. Required with `group`, else 0 to N - 1 by default.
        group: the processes that share the images. Every rank gets the same state.

    Returns:
        The fitted state and the predictions for the same images.

    Raises:
        ValueError: fewer images than clusters, rows that are not finite or not unit, a bank of another width, or an
            `index` that does not have one id for each image; on every rank of a group.
    """
    _check(x, banks, config, group)
    _check_index(index, len(x), group)
    n_images = all_reduce_count(len(x), group)
    asked = config

    @cache
    def texts_for(n_clusters: int) -> stages.Texts:
        """U and V. Of the settings that `auto` may still decide, they depend only on the number of clusters."""
        config = replace(asked, n_clusters=n_clusters)
        if select_on is not None:
            return stages.select(select_on, banks, config)
        return stages.select(x, banks, config, index, group)

    notes = dict(provenance or {})
    if config.n_clusters == AUTO_N_CLUSTERS or config.fusion == "auto":
        sample = sample_rows(x, index, sample_size(n_images, config), config.seed, group).to(x.device)
        config, decided = decide(sample, config, texts_for, group)
        notes |= decided
    selected = stages.potentials(x, texts_for(config.n_clusters), config, group)
    means = stages.means(x, selected, config, n_images, group)
    z, beta = blockwise(lambda rows: stages.fused(rows, selected, means, config, n_images), x)
    found = partition(z, config, index=index, group=group)
    tree = grow(z, found, config, index=index, group=group)
    fitted = FittedCAE(config, n_images, selected, means, found, [], notes, hierarchy=tree)
    prediction = Prediction(*blockwise(lambda *rows: _assigned(*rows, fitted=fitted), z, beta))
    clusters, nodes = describe_tree(x, prediction.leaf, tree, banks, config, group)
    if is_first(group):
        warn_of_empty(torch.tensor([cluster.size for cluster in clusters]))
    return replace(fitted, clusters=clusters, nodes=nodes), prediction


def predict(x: Tensor, fitted: FittedCAE) -> Prediction:
    """Label images by a fitted state.

    Args:
        x: (B, D) float32 or float16 unit image embeddings of the fitted encoder, on the state's device.
        fitted: state that `fit` returned.

    Raises:
        ValueError: rows that are not finite or not unit.
    """
    _check_rows(x)

    def label(rows: Tensor) -> tuple[Tensor, ...]:
        z, beta = stages.fused(rows, fitted.selected, fitted.means, fitted.config, fitted.n_images)
        return _assigned(z, beta, fitted=fitted)

    return Prediction(*blockwise(label, x))


def placement(x: Tensor, fitted: FittedCAE, leaf: Tensor) -> Placement:
    """Where images are on all levels of the tree of groups, so that none of them has to be predicted.

    Args:
        x: (B, D) float32 or float16 unit image embeddings of the fitted encoder, on the state's device.
        fitted: state with a tree.
        leaf: (B,) int64, their leaves, out of their predictions.
    """
    tree = fitted.hierarchy
    assert tree is not None  # the caller has looked

    def place(rows: Tensor, leaf: Tensor) -> Placement:
        z, _ = stages.fused(rows, fitted.selected, fitted.means, fitted.config, fitted.n_images)
        with exact_products(z.device):
            return tree.place(z, fitted.partition, leaf)

    return Placement(*blockwise(place, x, leaf))


def representations(x: Tensor, fitted: FittedCAE) -> dict[str, Tensor]:
    """The images as each step of the method sees them (Figure 5 of the paper).

    Args:
        x: (B, D) float32 or float16 unit image embeddings.
        fitted: state that `fit` returned.

    Returns:
        `image`, each of `config.modalities`, and `fused`, which is what gets clustered; (B, D) each, `fused` wider for
        concatenation.

    Raises:
        ValueError: rows that are not finite or not unit.
    """
    _check_rows(x)

    def represent(rows: Tensor) -> tuple[Tensor, ...]:
        parts = stages.counterparts(rows, fitted.selected, fitted.config, fitted.n_images)
        return *parts, fuse_modalities(parts, fitted.means, fitted.config)[0]

    return dict(zip(("image", *fitted.config.modalities, "fused"), blockwise(represent, x), strict=True))


def top_texts(x: Tensor, selected: SelectedTexts, k: int) -> Tensor:
    """The texts that carry most of each image's transport plan.

    Args:
        x: (B, D) float32 unit image embeddings.
        selected: the selected texts of one modality of a fitted state.
        k: number of texts, at most M.

    Returns:
        (B, k) int64 indices into `selected.texts`, the heaviest first.
    """
    # t_ij grows with x_i.u_j + g_j, so no softmax is needed to rank.
    return nearest(x, selected.embeddings, k=k, bias=selected.g).labels.reshape(len(x), k)


def _check(x: Tensor, banks: Mapping[str, TextBank], config: CAEConfig, group: ProcessGroup | None) -> None:
    """Refuse invalid input on all ranks together: if one rank stopped alone, the others would wait for it."""
    if x.ndim != 2:
        raise ValueError(f"expected image embeddings (N, D), got a tensor of shape {tuple(x.shape)}")
    n_images = all_reduce_count(len(x), group)
    if n_images < config.n_clusters:
        raise ValueError(f"cannot make {config.n_clusters} clusters of {n_images} images; ask for fewer clusters")
    for modality in config.modalities:
        if modality not in banks:
            raise ValueError(f"the {modality} bank is missing; got banks for {', '.join(banks) or 'nothing'}")
        if banks[modality].embeddings.shape[1] != x.shape[1]:
            raise ValueError(
                f"the {modality} bank has width {banks[modality].embeddings.shape[1]}, the images {x.shape[1]}: "
                "embed both with the same encoder"
            )
    _check_rows(x, group)


def _check_rows(x: Tensor, group: ProcessGroup | None = None) -> None:
    """Refuse embeddings (N, D) that are not finite or not unit, on all ranks together."""
    broken, stretched = torch.zeros(2, dtype=torch.int64)
    for rows in x.split(CHUNK_ROWS):
        length = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
        broken += (~length.isfinite()).sum().cpu()
        # The kernels' own tolerance. They would raise on one rank only, and leave the others waiting.
        stretched += ((length - 1).abs() > UNIT_TOLERANCE[torch.float32]).sum().cpu()
    broken, stretched = all_reduce_sum(torch.stack([broken, stretched]), group).tolist()
    n_images = all_reduce_count(len(x), group)
    if broken:
        raise ValueError(
            f"{broken} of {n_images} image embeddings hold NaN or infinity; leave these out, or fix what made them"
        )
    if stretched:
        raise ValueError(
            f"{stretched} of {n_images} image embeddings are not of unit length: normalize them, but leave out zeros"
        )


def _check_index(index: Tensor | None, n: int, group: ProcessGroup | None) -> None:
    """Refuse ids that are not one for each of this rank's n images, or not all different, on all ranks together."""
    if index is None:
        fits, given = group is None, "missing"
    else:
        fits, given = index.shape == (n,) and index.dtype == torch.int64, f"{tuple(index.shape)} {index.dtype}"
    if all_reduce_count(not fits, group):
        raise ValueError(
            "`index` must hold an id for each image, (N,) torch.int64 for N images, on each process that has some of "
            f"them; here it is {given} for {n} images"
        )
    if index is None:
        return
    repeated = all_reduce_count(n - int(first_occurrence_mask(index, group).sum()), group)
    if repeated:
        raise ValueError(f"the ids of images in `index` must all be different, but {repeated} of them repeat another")


def _assigned(z: Tensor, beta: Tensor, *, fitted: FittedCAE) -> tuple[Tensor, ...]:
    """A block of z to the fields of `Prediction`."""
    with exact_products(z.device):
        if fitted.hierarchy is None:
            found = fitted.partition.assign(z)
            leaf = found.labels
        else:
            found, leaf = fitted.hierarchy.assign(z, fitted.partition, fitted.config.n_clusters)
    return found.labels, found.confidence, found.runner_up, found.similarity, beta, leaf
