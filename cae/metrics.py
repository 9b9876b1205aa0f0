"""Agreement of clusters with known classes, in percent: NMI, ACC and ARI as in the paper's tables."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor


def cluster_accuracy(preds: Tensor, target: Tensor) -> float:
    """ACC: the share of images in the class that the best one-to-one match gives to their cluster.

    Args:
        preds: (N,) int64 cluster labels, N at least 1.
        target: (N,) int64 class labels. The numbers of clusters and classes may differ.

    Returns:
        A number in [0, 1].
    """
    clusters, preds = torch.unique(preds, return_inverse=True)
    classes, target = torch.unique(target, return_inverse=True)
    counts = torch.bincount(preds * len(classes) + target, minlength=len(clusters) * len(classes))
    counts = counts.reshape(len(clusters), len(classes)).cpu().numpy()
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(preds))


def clustering_scores(preds: Tensor, target: Tensor) -> dict[str, float]:
    """NMI (arithmetic mean), ACC (Hungarian) and ARI in percent.

    Args:
        preds: (N,) int64 cluster labels, N at least 1.
        target: (N,) int64 class labels.
    """
    return {
        "nmi": 100 * float(normalized_mutual_info_score(target, preds)),
        "acc": 100 * cluster_accuracy(preds, target),
        "ari": 100 * float(adjusted_rand_score(target, preds)),
    }
