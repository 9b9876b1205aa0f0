"""Agreement of clusters with known classes as torchmetrics, over the functions of `cae.metrics.functional`.

Tables of counts of parts of the data add up, so the classes for distributed evaluation keep nothing else. torchmetrics'
own NMI and ARI keep every label, and its NMI of two constant labelings is 0 where scikit-learn says 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from cae.metrics.functional import (
    ContingencyMatrix,
    Labels,
    accuracy_from_contingency,
    ari_from_contingency,
    as_labels,
    cluster_to_class,
    contingency_matrix,
    nmi_from_contingency,
)

__all__ = ["AdjustedRandIndex", "ClusterAccuracy", "ContingencyMetric", "NormalizedMutualInfo", "clustering_metrics"]


class ContingencyMetric(Metric):
    """A score of the count table, accumulated over batches and processes.

    Args:
        n_clusters: K; labels 0 to K - 1.
        n_classes: C; the numbers may differ.

    Raises:
        ValueError: fewer than one cluster or class; from `update`, for labels outside the table or of different length.

    Examples:
        >>> class Purity(ContingencyMetric):
        ...     def _score(self, counts):
        ...         return float(counts.max(axis=1).sum() / counts.sum())
        >>> Purity(2, 2)(torch.tensor([1, 1, 0, 0]), torch.tensor([0, 0, 1, 0]))
        tensor(0.7500)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    counts: Tensor

    def __init__(self, n_clusters: int, n_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in (("n_clusters", n_clusters), ("n_classes", n_classes)):
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        self.add_state("counts", torch.zeros(n_clusters, n_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Labels, target: Labels) -> None:
        """Count a batch: (B,) clusters and (B,) classes of any integer dtype."""
        preds, target = as_labels(preds, "preds"), as_labels(target, "target")
        # Before they are counted: the table of a batch reaches up to its largest labels.
        clusters, classes = (int(labels.max()) + 1 if len(labels) else 0 for labels in (preds, target))
        if clusters > self.counts.shape[0] or classes > self.counts.shape[1]:
            raise ValueError(
                f"labels reach {clusters} clusters and {classes} classes, but the metric was made for "
                f"{self.counts.shape[0]} and {self.counts.shape[1]}"
            )
        batch = contingency_matrix(preds, target).to(self.counts.device)
        self.counts[: batch.shape[0], : batch.shape[1]] += batch

    def compute(self) -> Tensor:
        """The score in [0, 1] (ARI: at most 1), as a float32 scalar.

        Raises:
            ValueError: nothing was counted yet.
        """
        counts = self.counts.cpu().numpy()
        if not counts.any():
            raise ValueError("there are no images to score; call update first")
        return torch.tensor(self._score(counts), dtype=torch.float32, device=self.counts.device)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Draw one or more values, or what `compute` gives, with matplotlib; see torchmetrics' own metrics."""
        return self._plot(val, ax)

    def _score(self, counts: ContingencyMatrix) -> float:
        raise NotImplementedError


class ClusterAccuracy(ContingencyMetric):
    """ACC: the share of images in the class that the best one-to-one match gives to their cluster.

    Examples:
        >>> metric = ClusterAccuracy(n_clusters=2, n_classes=2)
        >>> metric.update(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 1]))
        >>> metric.update(torch.tensor([0, 0]), torch.tensor([1, 0]))
        >>> metric.compute()
        tensor(0.8000)
    """

    def _score(self, counts: ContingencyMatrix) -> float:
        return accuracy_from_contingency(counts)

    def mapping(self) -> dict[int, int]:
        """Which cluster is which class, as far as counted in this process."""
        return cluster_to_class(self.counts.cpu().numpy())


class NormalizedMutualInfo(ContingencyMetric):
    """NMI with the arithmetic mean of entropies.

    Examples:
        >>> metric = NormalizedMutualInfo(n_clusters=2, n_classes=2)
        >>> metric.update(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 1]))
        >>> metric.update(torch.tensor([0, 0]), torch.tensor([1, 0]))
        >>> metric.compute()
        tensor(0.4325)
    """

    def _score(self, counts: ContingencyMatrix) -> float:
        return nmi_from_contingency(counts)


class AdjustedRandIndex(ContingencyMetric):
    """ARI.

    Examples:
        >>> metric = AdjustedRandIndex(n_clusters=2, n_classes=2)
        >>> metric.update(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 1]))
        >>> metric.update(torch.tensor([0, 0]), torch.tensor([1, 0]))
        >>> metric.compute()
        tensor(0.1667)
    """

    plot_lower_bound = -0.5

    def _score(self, counts: ContingencyMatrix) -> float:
        return ari_from_contingency(counts)


def clustering_metrics(n_clusters: int, n_classes: int, **kwargs: Any) -> MetricCollection:
    """NMI, ACC and ARI under `nmi`, `acc` and `ari`; one count table between them.

    Args:
        n_clusters: K.
        n_classes: C.
        kwargs: further arguments of `torchmetrics.MetricCollection`, such as `prefix`.

    Examples:
        >>> metrics = clustering_metrics(2, 2, prefix="test_")
        >>> scores = metrics(torch.tensor([1, 1, 0, 0]), torch.tensor([0, 0, 1, 1]))
        >>> {name: round(float(score), 2) for name, score in sorted(scores.items())}
        {'test_acc': 1.0, 'test_ari': 1.0, 'test_nmi': 1.0}
    """
    metrics: dict[str, Metric] = {
        "nmi": NormalizedMutualInfo(n_clusters, n_classes),
        "acc": ClusterAccuracy(n_clusters, n_classes),
        "ari": AdjustedRandIndex(n_clusters, n_classes),
    }
    return MetricCollection(metrics, compute_groups=[["nmi", "acc", "ari"]], **kwargs)  # type: ignore[arg-type]
