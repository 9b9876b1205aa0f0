"""Which texts are typical of a cluster, among selected ones.

Text j is typical of cluster k when the cluster sends much of its transport mass to it and other clusters send little.
With p(j|k) the mean of the row-normalised plan over the cluster's images and p(j) its mean over clusters,

    typicality(k, j) = p(j|k) log(p(j|k) / p(j)),

the text's share of the Kullback-Leibler divergence between the cluster and the average cluster.

With one epsilon for all images, how far a row of the plan spreads depends on how many texts are selected and on the
encoder. So descriptions go by rows that have an epsilon each, by which all have the same perplexity, found as t-SNE
finds its own (van der Maaten & Hinton 2008; among the nearest texts alone: van der Maaten 2014, Accelerating t-SNE).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cae.config import CAEConfig
from cae.kernels.exact import exact_products
from cae.kernels.products import inner_products
from cae.method.blocks import BLOCK_ROWS
from cae.method.fitted import SelectedTexts
from cae.utils.distributed import all_reduce_sum

PERPLEXITY = 6
"""How many texts each image spreads over, as exp of its entropy; see benchmarks/README.md for others."""

NEAREST = 3
"""How many times the perplexity texts are looked at for each image; the usual factor of t-SNE."""

_EPSILONS = 1e-4, 1.0
"""Between which an image's epsilon is looked for: similarities that tell texts apart differ by about 0.01."""

_HALVINGS = 16
"""Of this range's logarithm, to within 0.02 %."""


def transport_mass(
    x: Tensor, labels: Tensor, texts: SelectedTexts, config: CAEConfig, group: ProcessGroup | None = None
) -> Tensor:
    """p(j|k): how each cluster's images spread over the texts, by the row-normalised plan.

    Args:
        x: (N, D) float32 or float16 unit image embeddings; with `group`, only this rank's rows.
        labels: (N,) int64 clusters.
        texts: M selected texts with their potentials.
        config: gives K and epsilon.
        group: the processes that share the images.

    Returns:
        (K, M) float32; rows sum to 1, or to 0 for a cluster without images.
    """
    return _mean_plan(x, labels, texts, config.n_clusters, lambda s: (s / config.epsilon).softmax(dim=1), group)


def spread_mass(
    x: Tensor, labels: Tensor, texts: SelectedTexts, n_clusters: int, group: ProcessGroup | None = None
) -> Tensor:
    """The same with `n_clusters` for K, by rows of the plan that all have the same perplexity (`spread`)."""
    return _mean_plan(x, labels, texts, n_clusters, spread, group)


def _mean_plan(
    x: Tensor,
    labels: Tensor,
    texts: SelectedTexts,
    n_clusters: int,
    plan_of: Callable[[Tensor], Tensor],
    group: ProcessGroup | None,
) -> Tensor:
    """The mean row of each cluster's images in the plan that `plan_of` makes of similarities with their potentials."""
    mass = torch.zeros(n_clusters, len(texts.texts), dtype=torch.float64, device=x.device)
    # Cluster after cluster, so that a block holds few of them and costs no more for many.
    for rows in labels.argsort(stable=True).split(BLOCK_ROWS):
        with exact_products(x.device):
            scores = inner_products(x[rows].float(), texts.embeddings)
        plan = plan_of(scores + texts.g)
        clusters = labels[rows]
        here = clusters.unique_consecutive()
        # A matrix product, since index_add_ adds in no fixed order on CUDA.
        mass[here] += (here.unsqueeze(1) == clusters).to(plan) @ plan
    sizes = torch.bincount(labels, minlength=n_clusters)
    return (all_reduce_sum(mass, group) / all_reduce_sum(sizes, group).clamp_min(1).unsqueeze(1)).float()


def spread(scores: Tensor) -> Tensor:
    """Rows of a plan that all have the same perplexity: `PERPLEXITY`, or a third of the texts where these are few.

    Args:
        scores: (B, M) float32 similarities with their potentials.

    Returns:
        (B, M) float32; rows sum to 1, over the nearest texts.

    Examples:
        >>> rows = spread(torch.rand(2, 500, generator=torch.Generator().manual_seed(0)))
        >>> [round(2 ** -(row * row.log2()).nansum().item(), 2) for row in rows]
        [6.0, 6.0]
    """
    perplexity = min(PERPLEXITY, scores.shape[1] / NEAREST)
    near, texts = scores.topk(min(NEAREST * PERPLEXITY, scores.shape[1]), dim=1)
    low, high = (near.new_full((len(near), 1), math.log(epsilon)) for epsilon in _EPSILONS)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        log_plan = (near / middle.exp()).log_softmax(dim=1)
        wide = -(log_plan.exp() * log_plan).sum(dim=1, keepdim=True) > math.log(max(perplexity, 1))
        low, high = torch.where(wide, low, middle), torch.where(wide, middle, high)
    return torch.zeros_like(scores).scatter_(1, texts, (near / low.exp()).softmax(dim=1))


def typicality(mass: Tensor, n: int | None = None) -> Tensor:
    """score(k, j) of the module's rule for p(j|k) = `mass` (K, M); same shape, 0 where there is no mass.

    The average is over the first n clusters, by default over all. A text that none of these has is typical of none.
    """
    average = mass[:n].mean(dim=0, keepdim=True)
    return (torch.special.xlogy(mass, mass) - torch.special.xlogy(mass, average)).nan_to_num(posinf=0)
