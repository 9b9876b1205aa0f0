"""Agreement of clusters with known classes: functions, and the same as torchmetrics.

Names are loaded at first use: the functions need no torchmetrics, which takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cae.utils.lazy import lazy

if TYPE_CHECKING:
    from cae.metrics.functional import (
        cluster_accuracy,
        cluster_to_class,
        clustering_scores,
        contingency_matrix,
        silhouette_score,
        stability,
    )
    from cae.metrics.torchmetrics import (
        AdjustedRandIndex,
        ClusterAccuracy,
        ContingencyMetric,
        NormalizedMutualInfo,
        clustering_metrics,
    )

_HOMES = {
    "AdjustedRandIndex": "cae.metrics.torchmetrics",
    "ClusterAccuracy": "cae.metrics.torchmetrics",
    "ContingencyMetric": "cae.metrics.torchmetrics",
    "NormalizedMutualInfo": "cae.metrics.torchmetrics",
    "cluster_accuracy": "cae.metrics.functional",
    "cluster_to_class": "cae.metrics.functional",
    "clustering_metrics": "cae.metrics.torchmetrics",
    "clustering_scores": "cae.metrics.functional",
    "contingency_matrix": "cae.metrics.functional",
    "silhouette_score": "cae.metrics.functional",
    "stability": "cae.metrics.functional",
}

__all__ = [
    "AdjustedRandIndex",
    "ClusterAccuracy",
    "ContingencyMetric",
    "NormalizedMutualInfo",
    "cluster_accuracy",
    "cluster_to_class",
    "clustering_metrics",
    "clustering_scores",
    "contingency_matrix",
    "silhouette_score",
    "stability",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
