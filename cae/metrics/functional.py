"""Agreement of clusters with known classes, NMI, ACC and ARI as in the paper's tables, and scores that need no labels.

All three compare two labelings through one table of counts, how many images of each class lie in each cluster; the
values are scikit-learn's in every case. `cae.metrics.torchmetrics` has them as torchmetrics,
which take seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import xlogy
from torch import Tensor

ContingencyMatrix = np.ndarray[Any, np.dtype[np.int64]]
Labels = Tensor | np.ndarray[Any, Any]
"""(N,) of any integer dtype, or bool."""


def as_labels(labels: Labels, name: str = "labels") -> Tensor:
    """Labels as (N,) int64, in which numbers that are computed from them have room.

    Args:
        labels: (N,) of any integer dtype, or bool.
        name: name of the labels in errors.

    Returns:
        On the device of the labels. Those from 2^63 on become negative, and stay distinct.

    Raises:
        ValueError: neither a tensor nor an array, of another shape, or not whole numbers by their dtype. Floats are
            refused even where all are whole: they are embeddings or probabilities more often than classes.

    >>> as_labels(np.array([3, 255], dtype=np.uint8))
    tensor([  3, 255])
    """
    if not isinstance(labels, Tensor | np.ndarray):
        raise ValueError(
            f"{name} must be a torch.Tensor or a NumPy array, got {type(labels).__name__}; pass torch.as_tensor({name})"
        )
    if isinstance(labels, Tensor):
        whole = not (labels.is_floating_point() or labels.is_complex())
    else:
        whole = labels.dtype.kind in "biu"
    if labels.ndim != 1 or not whole:
        raise ValueError(f"{name} must be (N,) whole numbers, got {labels.dtype} of shape {tuple(labels.shape)}")
    return labels.long() if isinstance(labels, Tensor) else torch.from_numpy(labels.astype(np.int64))


def contingency_matrix(preds: Labels, target: Labels) -> Tensor:
    """How many images lie in each cluster and class.

    Args:
        preds: (N,) cluster labels of any integer dtype, at least 0.
        target: (N,) class labels, likewise.

    Returns:
        (K, C) int64 on the labels' device, K and C one more than the largest labels; (0, 0) for no images.

    Raises:
        ValueError: labels are no tensors or arrays, of different length, not whole numbers, or negative.

    Examples:
        >>> preds, target = torch.tensor([1, 1, 0, 0, 0]), torch.tensor([0, 0, 1, 1, 0])
        >>> contingency_matrix(preds, target)
        tensor([[1, 2],
                [2, 0]])
    """
    preds, target = as_labels(preds, "preds"), as_labels(target, "target")
    if len(preds) != len(target):
        raise ValueError(f"{len(preds)} cluster labels but {len(target)} class labels: give one of each per image")
    if len(preds) == 0:
        return preds.new_zeros(0, 0, dtype=torch.int64)
    if int(preds.min()) < 0:
        raise ValueError("preds must be at least 0; those of -1 are placeholders of a fit that has not ended")
    if int(target.min()) < 0:
        raise ValueError("target must be at least 0; leave out images without a class, which data sets often number -1")
    # Labels may be any numbers below 2^63 and the table is dense, so callers with wild labels renumber them first.
    n_clusters, n_classes = int(preds.max()) + 1, int(target.max()) + 1
    return torch.bincount(preds * n_classes + target, minlength=n_clusters * n_classes).reshape(n_clusters, n_classes)


def cluster_to_class(counts: ContingencyMatrix) -> dict[int, int]:
    """The one-to-one match of clusters to classes that puts most images right (Hungarian method).

    Args:
        counts: (K, C) from `contingency_matrix`; K and C may differ, and then some clusters or classes go without.

    Examples:
        >>> cluster_to_class(np.array([[1, 2], [2, 0]]))
        {0: 1, 1: 0}
    """
    clusters, classes = linear_sum_assignment(counts, maximize=True)
    return dict(zip(clusters.tolist(), classes.tolist(), strict=True))


def accuracy_from_contingency(counts: ContingencyMatrix) -> float:
    """ACC in [0, 1] of a (K, C) table: the share of images in the class that `cluster_to_class` gives their cluster."""
    return float(sum(counts[pair] for pair in cluster_to_class(counts).items()) / counts.sum())


def nmi_from_contingency(counts: ContingencyMatrix) -> float:
    """Mutual information over the arithmetic mean of both entropies, in [0, 1]; 1 for two constant labelings."""
    joint = counts[counts.any(axis=1)][:, counts.any(axis=0)] / counts.sum()
    if joint.shape == (1, 1):
        return 1.0
    clusters, classes = joint.sum(axis=1), joint.sum(axis=0)
    entropy = -xlogy(clusters, clusters).sum() - xlogy(classes, classes).sum()
    mutual = xlogy(joint, joint).sum() + entropy
    return float(min(max(2 * mutual / entropy, 0.0), 1.0))


def ari_from_contingency(counts: ContingencyMatrix) -> float:
    """Adjusted Rand index (Hubert and Arabie 1985): pairs of images treated alike, 0 on average for random labels."""
    # Python's integers: the products of pair counts pass 2^63 from some ten thousand images on.
    pairs = int(counts.sum()) ** 2
    squares = int((counts**2).sum())
    clusters = int((counts.sum(axis=1) ** 2).sum())
    classes = int((counts.sum(axis=0) ** 2).sum())
    # Ordered pairs together in both, in the clusters alone, in the classes alone, in neither.
    both, only_cluster, only_class = squares - int(counts.sum()), clusters - squares, classes - squares
    neither = pairs - clusters - classes + squares
    if only_cluster == only_class == 0:
        return 1.0
    ours = both * neither - only_cluster * only_class
    most = (both + only_cluster) * (only_cluster + neither) + (both + only_class) * (only_class + neither)
    return 2.0 * ours / most


CLUSTERING_SCORES: dict[str, Callable[[ContingencyMatrix], float]] = {
    "nmi": nmi_from_contingency,
    "acc": accuracy_from_contingency,
    "ari": ari_from_contingency,
}


def cluster_accuracy(preds: Labels, target: Labels) -> float:
    """ACC: the share of images in the class that the best one-to-one match gives to their cluster.

    Args:
        preds: (N,) cluster labels of any integer dtype, N at least 1.
        target: (N,) class labels, likewise. The numbers of clusters and classes may differ.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: no labels, or none that `as_labels` takes.

    Examples:
        >>> preds, target = torch.tensor([1, 1, 0, 0, 0]), torch.tensor([0, 0, 1, 1, 0])
        >>> cluster_accuracy(preds, target)
        0.8
    """
    return accuracy_from_contingency(_counts(preds, target))


def clustering_scores(preds: Labels, target: Labels) -> dict[str, float]:
    """NMI (arithmetic mean), ACC (Hungarian) and ARI in percent.

    Args:
        preds: (N,) cluster labels of any integer dtype, N at least 1.
        target: (N,) class labels, likewise.

    Raises:
        ValueError: no labels, or none that `as_labels` takes.

    Examples:
        >>> preds, target = torch.tensor([1, 1, 0, 0, 0]), torch.tensor([0, 0, 1, 1, 0])
        >>> {name: round(score, 1) for name, score in clustering_scores(preds, target).items()}
        {'nmi': 43.3, 'acc': 80.0, 'ari': 16.7}
    """
    counts = _counts(preds, target)
    return {name: 100 * score(counts) for name, score in CLUSTERING_SCORES.items()}


def _counts(preds: Labels, target: Labels) -> ContingencyMatrix:
    """The count table of labels that may be any whole numbers."""
    preds, target = as_labels(preds, "preds"), as_labels(target, "target")
    if preds.numel() == 0:
        raise ValueError("there are no images to score")
    clusters = torch.unique(preds, return_inverse=True)[1]
    classes = torch.unique(target, return_inverse=True)[1]
    return contingency_matrix(clusters, classes).cpu().numpy()


def silhouette_score(x: Tensor, labels: Labels, *, sample: int = 2000, seed: int = 0) -> float:
    """Silhouette by cosine distance on a random sample: how much closer images are to their own cluster than the next.

    Args:
        x: (N, D) float embeddings, not zero.
        labels: (N,) clusters of any integer dtype.
        sample: images to take; the cost grows with its square.
        seed: seed of the sample.

    Returns:
        In [-1, 1]; 0 where the sample has one cluster, or as many as images, which scikit-learn refuses.

    Raises:
        ValueError: not one label for each row, or none that `as_labels` takes.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> round(silhouette_score(x, torch.tensor([0, 0, 1, 1])), 2)
        0.99
    """
    labels = as_labels(labels)
    if len(labels) != len(x):
        raise ValueError(f"{len(labels)} labels for {len(x)} embeddings: give one for each")
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:sample]
    # Only the sample leaves the device, which may hold millions of rows.
    x, labels = x.detach()[chosen.to(x.device)].cpu(), labels.cpu()[chosen]
    if not 1 < len(labels.unique()) < len(labels):
        return 0.0
    from sklearn.metrics import silhouette_score as sklearn_silhouette  # takes a second

    return float(sklearn_silhouette(x.float().numpy(), labels.numpy(), metric="cosine"))


def stability(labelings: Sequence[Labels]) -> float:
    """Mean ARI over all pairs of labelings of the same images: over seeds, or over bootstraps seen through `predict`.

    Args:
        labelings: two labelings or more, (N,) of any integer dtype.

    Returns:
        1 where all agree, about 0 where they are unrelated.

    Raises:
        ValueError: fewer than two labelings.

    Examples:
        >>> stability([torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0])])
        1.0
    """
    if len(labelings) < 2:
        raise ValueError(f"stability compares at least two labelings, got {len(labelings)}")
    return float(np.mean([ari_from_contingency(_counts(a, b)) for a, b in combinations(labelings, 2)]))
