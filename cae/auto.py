"""`fusion="auto"`: how much the texts may weigh, decided without labels.

Whether texts help depends on what the text encoder knows beyond the image encoder, and on the pictures; no fixed
setting is right for all (figures: benchmarks/README.md). The criterion is a held-out probe: a partition that means
something can be told from the image embeddings of pictures that the probe has not seen. So

1. cluster a sample of the images under each candidate, image k-means among them;
2. fit a ridge regression from the image embeddings to the clusters on one half of the sample, predict the clusters of
   the other half, and the other way round;
3. take the candidate whose clusters agree best with their predictions, by NMI.

Arbitrary cuts through a continuum, which k-means makes where style outweighs content, and partitions by texts that know
nothing of the images are both hard to predict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from cae.config import CAEConfig
from cae.metrics import clustering_scores
from cae.stopwatch import stage

T = TypeVar("T")

CANDIDATES: dict[str, dict[str, Any]] = {
    "image alone": {"fusion": "sum", "text_weight": 0.0, "center_modalities": False},
    "a little text": {"fusion": "sum", "text_weight": 0.1},
    "some text": {"fusion": "sum", "text_weight": 0.25},
    "much text": {"fusion": "sum", "text_weight": 0.5},
    "prototype": {"fusion": "prototype"},
    "prototype, texts as they come": {"fusion": "prototype", "balance": 0.0},
}
"""What is tried, as changes to the settings that were asked for; in case of a tie the first wins."""

SAMPLE = 4000
"""Images on which candidates are compared, at least; `PER_CLUSTER` for each cluster where that is more."""
PER_CLUSTER = 50

RIDGE = 1.0
"""Penalty of the probe, for rows of unit length."""


@stage("auto")
def choose(
    x: Tensor,
    config: CAEConfig,
    transport: Callable[[Tensor, CAEConfig], T],
    group: Callable[[T, CAEConfig], Tensor],
) -> tuple[CAEConfig, dict[str, Any]]:
    """The candidate that the held-out probe likes best.

    Args:
        x: (N, D) float32 unit image embeddings.
        config: what was asked for; its other settings are shared by all candidates.
        transport: takes a sample (S, D) and gives whatever `group` needs of its counterparts; called once for each
            balance.
        group: gives the labels (S,) under a candidate's settings.

    Returns:
        The settings to use, and a record for people: `chosen`, `criterion`, `sample` and `scores` by candidate in
        percent.
    """
    sample = random_rows(x, max(SAMPLE, PER_CLUSTER * config.n_clusters), config.seed)
    probe = Probe(sample)
    configs = {name: replace(config, **changes) for name, changes in CANDIDATES.items()}
    transported, scores = {}, {}
    for name, candidate in configs.items():
        if candidate.balance not in transported:
            transported[candidate.balance] = transport(sample, candidate)
        # Few restarts: the winner is clustered again with all of them.
        labels = group(transported[candidate.balance], replace(candidate, n_init=-(-config.n_init // 4)))
        scores[name] = probe.score(labels, config.n_clusters)
    chosen = max(scores, key=lambda name: scores[name])
    record = {
        "chosen": chosen,
        "criterion": "NMI of clusters with their prediction from held-out images by ridge regression, in percent",
        "sample": len(sample),
        "scores": {name: round(100 * score, 2) for name, score in scores.items()},
    }
    return configs[chosen], record


def random_rows(x: Tensor, n: int, seed: int) -> Tensor:
    """(min(n, N), D) rows of x (N, D) in random order, the same for the same seed."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order[:n].to(x.device)]


class Probe:
    """Two-fold ridge regression from image embeddings to cluster labels, prepared once for any number of labelings.

    Args:
        x: (S, D) float32 embeddings in random order, S at least 4.
    """

    def __init__(self, x: Tensor) -> None:
        x = x.cpu().double()
        halves = x[: len(x) // 2], x[len(x) // 2 :]
        self.hats = [_ridge_hat(train, test) for train, test in (halves, halves[::-1])]

    def score(self, labels: Tensor, n_clusters: int) -> float:
        """NMI in [0, 1] of labels (S,) int64 with their prediction."""
        labels = labels.cpu()
        onehot = one_hot(labels, n_clusters).double()
        halves = onehot[: len(labels) // 2], onehot[len(labels) // 2 :]
        means = [half.mean(dim=0) for half in halves]
        second, first = (
            (hat @ (half - mean) + mean).argmax(dim=1) for hat, half, mean in zip(self.hats, halves, means, strict=True)
        )
        return clustering_scores(torch.cat([first, second]), labels)["nmi"] / 100


def _ridge_hat(train: Tensor, test: Tensor) -> Tensor:
    """H (S', S) with H y the predictions for `test` of a ridge regression of centred y on `train`."""
    mean = train.mean(dim=0)
    train, test = train - mean, test - mean
    # The smaller of the two normal equations: (X'X + r)^-1 X' = X' (XX' + r)^-1.
    if len(train) <= train.shape[1]:
        gram = train @ train.T
        gram.diagonal().add_(RIDGE)
        return torch.linalg.solve(gram, train @ test.T).T
    gram = train.T @ train
    gram.diagonal().add_(RIDGE)
    return test @ torch.linalg.solve(gram, train.T)
