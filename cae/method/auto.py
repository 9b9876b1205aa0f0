"""`fusion="auto"` and `n_clusters="auto"`: settings that are decided from a sample of the data, without labels.

How much the texts may weigh depends on what the text encoder knows beyond the image encoder, and on the images; no
fixed setting is right for all (figures: benchmarks/README.md). The criterion is a held-out probe: a partition that
means something can be told from the image embeddings of images that the probe has not seen. So

1. cluster the sample under each candidate, the images alone among them;
2. fit a ridge regression from the image embeddings to the clusters on one half of the sample, predict the clusters of
   the other half, and the other way round;
3. compare how well the clusters agree with their predictions, by NMI.

The probe sees large differences and no small ones: on CLIP features its order within a point or two says nothing of the
order of accuracies. So the settings that were asked for stay unless another candidate is better by `MARGIN`.

Arbitrary cuts through a continuum, which k-means makes where style outweighs content, and partitions by texts that know
nothing of the images are both hard to predict.

The number of clusters comes from `cae.method.cluster_count`, once for the images alone and once for the fused
embeddings; the probe says whose to believe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize, one_hot

from cae.config import AUTO_N_CLUSTERS, CAEConfig
from cae.method.cluster_count import count_clusters
from cae.method.partition import partition
from cae.method.stages import Texts, Trial
from cae.metrics.functional import clustering_scores
from cae.utils.distributed import broadcast_from_first
from cae.utils.progress import stage

CANDIDATES: dict[str, dict[str, Any]] = {
    "image alone": {"fusion": "sum", "text_weight": 0.0, "center_modalities": False},
    "a little text": {"fusion": "sum", "text_weight": 0.1},
    "some text": {"fusion": "sum", "text_weight": 0.25},
    "prototype": {"fusion": "prototype"},
    "prototype, texts as they come": {"fusion": "prototype", "balance": 0.0},
}
"""What is tried, as changes to the settings that were asked for; in case of a tie the first wins."""

NEED_IMAGE = ("image alone", "a little text")
"""Candidates that are left out where the image takes no part: a weight that all modalities share changes nothing."""

PREFERRED = "prototype"
"""The candidate that stays unless another one is clearly better: the settings that were asked for."""

MARGIN = 0.03
"""Difference in NMI from which on a candidate is clearly better."""

SAMPLE = 4000
"""Images on which candidates are compared, at least; `PER_CLUSTER` for each cluster where that is more."""
PER_CLUSTER = 50

CANDIDATE_MAX_ITER = 50
"""Most iterations of k-means for a candidate; where it takes more, clusters are cuts through a continuum."""

RIDGE = 1.0
"""Penalty of the probe, for rows of unit length."""


def sample_size(n_images: int, config: CAEConfig) -> int:
    """Images to decide on."""
    return min(n_images, max(SAMPLE, PER_CLUSTER * config.n_clusters))


@stage("decisions")
def decide(
    sample: Tensor,
    config: CAEConfig,
    texts_for: Callable[[int], Texts],
    group: ProcessGroup | None = None,
) -> tuple[CAEConfig, dict[str, Any]]:
    """Fill in what the settings leave open.

    Args:
        sample: (S, D) float32 unit image embeddings, the same on every rank of the group.
        config: the settings that were asked for, with `n_clusters` or `fusion` left open, or both.
        texts_for: the selected texts for a number of clusters; a collective call.
        group: the processes that share the images; the first one's numbers decide.

    Returns:
        Settings with nothing left open, and records for people: `cluster_count` (chosen, from, criterion, curves) and
        `auto` (chosen, criterion, sample, scores in percent, undecided: whether no candidate could be predicted at
        all), each if it was decided.
    """
    # In random order, so that the halves of the probe are alike.
    sample = sample[torch.randperm(len(sample), generator=torch.Generator().manual_seed(config.seed)).to(sample.device)]
    probe = Probe(sample)
    decided: dict[str, Any] = {}
    if config.n_clusters == AUTO_N_CLUSTERS:
        config, decided["cluster_count"] = _count(sample, probe, config, texts_for, group)
    if config.fusion == "auto":
        config, decided["auto"] = _weigh(probe, config, Trial(sample, texts_for(config.n_clusters)), group)
    return config, decided


def _count(
    sample: Tensor,
    probe: Probe,
    config: CAEConfig,
    texts_for: Callable[[int], Texts],
    group: ProcessGroup | None,
) -> tuple[CAEConfig, dict[str, Any]]:
    """The number of clusters."""
    images = count_clusters(sample, seed=config.seed)
    config = replace(config, n_clusters=_agreed(images.n_clusters, group))
    fixed = replace(config, fusion="prototype") if config.fusion == "auto" else config
    fused = count_clusters(normalize(Trial(sample, texts_for(config.n_clusters)).fused(fixed), dim=1), seed=config.seed)
    counts = {"images": images, "fused": fused}
    scores = {source: probe.score(count.labels, count.n_clusters) for source, count in counts.items()}
    source = max(scores, key=lambda name: scores[name])
    chosen = _agreed(counts[source].n_clusters, group)
    record = {
        "chosen": chosen,
        "from": source,
        "criterion": "modularity of the partition on the graph of nearest neighbours, by number of clusters",
        "curves": {name: {str(k): round(q, 4) for k, q in count.curve.items()} for name, count in counts.items()},
    }
    return replace(config, n_clusters=chosen), record


def _weigh(
    probe: Probe, config: CAEConfig, trial: Trial, group: ProcessGroup | None
) -> tuple[CAEConfig, dict[str, Any]]:
    """How much the texts may weigh."""
    configs = {
        name: replace(config, **changes)
        for name, changes in CANDIDATES.items()
        if config.image or name not in NEED_IMAGE
    }
    scores = {}
    for name, candidate in configs.items():
        z = trial.fused(candidate)
        # One short run of k-means is enough here: the winner is clustered again with all restarts and iterations.
        glance = replace(
            candidate, n_init=-(-candidate.n_init // 5), kmeans_iter=min(candidate.kmeans_iter, CANDIDATE_MAX_ITER)
        )
        scores[name] = probe.score(partition(z, glance).assign(z).labels, candidate.n_clusters)
    best = max(scores, key=lambda name: scores[name])
    undecided = not any(scores.values())  # the first candidate then, in which texts weigh least
    clear = undecided or scores[best] - scores[PREFERRED] > MARGIN
    chosen = list(configs)[_agreed(list(configs).index(best if clear else PREFERRED), group)]
    percent = {name: round(100 * score, 2) for name, score in scores.items()}
    record = {
        "chosen": chosen,
        "criterion": (
            "NMI of clusters with their prediction from held-out images by ridge regression, in percent; "
            f"{PREFERRED} unless another is better by {100 * MARGIN:.0f}"
        ),
        "sample": len(probe),
        "scores": percent,
        "undecided": undecided,
    }
    return configs[chosen], record


def _agreed(value: int, group: ProcessGroup | None) -> int:
    """The first rank's value: rounding must not let ranks decide differently."""
    return int(broadcast_from_first(torch.tensor(value), group))


class Probe:
    """Two-fold ridge regression from image embeddings to cluster labels, prepared once for any number of labelings.

    Args:
        x: (S, D) float32 embeddings in random order, S at least 4.
    """

    def __init__(self, x: Tensor) -> None:
        x = x.cpu().double()
        self.n = len(x)
        halves = x[: len(x) // 2], x[len(x) // 2 :]
        self.predictors = [_ridge(train, test) for train, test in (halves, halves[::-1])]

    def __len__(self) -> int:
        return self.n

    def score(self, labels: Tensor, n_clusters: int) -> float:
        """NMI in [0, 1] of labels (S,) int64 with their prediction."""
        labels = labels.cpu()
        onehot = one_hot(labels, n_clusters).double()
        halves = onehot[: len(labels) // 2], onehot[len(labels) // 2 :]
        second, first = (
            (predict(half - half.mean(dim=0)) + half.mean(dim=0)).argmax(dim=1)
            for predict, half in zip(self.predictors, halves, strict=True)
        )
        return clustering_scores(torch.cat([first, second]), labels)["nmi"] / 100


def _ridge(train: Tensor, test: Tensor) -> Callable[[Tensor], Tensor]:
    """Takes centred targets (S, K) of `train` (S, D); gives their predictions for `test` (S', D)."""
    mean = train.mean(dim=0)
    train, test = train - mean, test - mean
    # The smaller of the two normal equations: (X'X + r)^-1 X' = X' (XX' + r)^-1.
    small = len(train) <= train.shape[1]
    gram = train @ train.T if small else train.T @ train
    gram.diagonal().add_(RIDGE)
    factor = torch.linalg.cholesky(gram)
    if small:
        cross = test @ train.T
        return lambda y: cross @ torch.cholesky_solve(y, factor)
    return lambda y: test @ torch.cholesky_solve(train.T @ y, factor)
