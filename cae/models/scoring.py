"""Scores of `trainer.test`, over the images of all batches and processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cae.metrics.functional import CLUSTERING_SCORES
from cae.utils.distributed import all_gather_rows, all_reduce_sum, first_occurrence_mask


class ScoreCollector:
    """Collects the labels and classes of tested images, and scores them; images that a sampler repeats count once."""

    def __init__(self) -> None:
        ids, share = torch.empty(0, dtype=torch.int64), torch.empty(0)
        self._batches: list[tuple[Tensor, ...]] = [(ids, ids, ids, share, share)]  # a process may get no batch

    def add(self, index: Tensor, found: Mapping[str, Tensor], classes: Tensor) -> None:
        """Add a batch.

        Args:
            index: (B,) int64 ids of the images.
            found: `cluster`, `confidence` and `similarity` of `cae.method.pipeline.Prediction`, each (B,).
            classes: (B,) int64 known classes.
        """
        self._batches.append((index, found["cluster"], classes, found["confidence"], found["similarity"]))

    def scores(self, n_clusters: int, group: ProcessGroup | None) -> dict[str, float]:
        """NMI, ACC and ARI in [0, 1], and the means of confidence and similarity; the same on every rank.

        Args:
            n_clusters: K.
            group: the processes that share the images; None for one.

        Raises:
            ValueError: there are no images.
        """
        index, clusters, classes, *means = (torch.cat(column) for column in zip(*self._batches, strict=True))
        keep = first_occurrence_mask(index, group)
        # A column for each class that some process has met: their numbers may be as large as they like.
        known = all_gather_rows(classes[keep].unique(), group).unique()
        if not len(known):
            raise ValueError("there are no images to test on: the loader yields none, or none can be read")
        cells = clusters[keep] * len(known) + torch.searchsorted(known, classes[keep])
        counts = torch.bincount(cells, minlength=n_clusters * len(known)).reshape(n_clusters, -1)
        table = all_reduce_sum(counts, group).numpy()
        scores = {name: score(table) for name, score in CLUSTERING_SCORES.items()}
        for name, values in zip(("confidence", "similarity"), means, strict=True):
            of_all = all_reduce_sum(values[keep].sum(dtype=torch.float64), group)
            scores[name] = float(of_all) / int(table.sum())
        return scores
