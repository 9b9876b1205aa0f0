"""Adaptive semantics fusion (Eq. 14-17), and the plainer ones it is compared with (Table 4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from cae.config import CAEConfig
from cae.kernels import fuse
from cae.utils.distributed import all_reduce_count, all_reduce_sum
from cae.utils.progress import stage

COLLAPSED = 0.99
"""Mean weight from which one modality has taken over the fusion."""


def collapsed_modality(mean_beta: Sequence[float], config: CAEConfig) -> str | None:
    """The modality that has taken over the fusion; None if none has, or if the settings use only one.

    Args:
        mean_beta: mean modality weights, the image first, then `config.modalities`.
        config: the settings of the fusion.
    """
    if not config.text_weight or (not config.image and len(config.modalities) == 1):
        return None
    weights = dict(zip(("image", *config.modalities), mean_beta, strict=True))
    largest = max(weights, key=lambda modality: weights[modality])
    return largest if weights[largest] > COLLAPSED else None


@stage("fusion")
def modality_means(blocks: Iterable[Sequence[Tensor]], group: ProcessGroup | None = None) -> Tensor:
    """What `fuse_modalities` subtracts to centre: the mean of each modality over all images.

    Args:
        blocks: the m modalities of some rows at a time, (B, D) each; at least one block, which may be empty.
        group: the processes that share the images.

    Returns:
        (m, D) float32, the same on every rank.
    """
    # float64: a float32 sum over a million rows loses the digits that centring is about.
    rows, sums = 0, torch.zeros(())
    for parts in blocks:
        rows += len(parts[0])
        sums = sums + torch.stack([part.sum(dim=0, dtype=torch.float64) for part in parts])
    return (all_reduce_sum(sums, group) / all_reduce_count(rows, group)).float()


@stage("fusion")
def fuse_modalities(parts: Sequence[Tensor], means: Tensor, config: CAEConfig) -> tuple[Tensor, Tensor]:
    """Eq. 14-17: weigh each modality by its similarity to the prototype of all, and add them up.

    Args:
        parts: image embeddings and counterparts, m tensors (N, D) float32.
        means: (m, D) from `modality_means`, taken on the fitted images.
        config: gives fusion, gamma, the weight of the texts and the geometry of the last k-means.

    Returns:
        z (N, D), or for `concat` (N, D) times the modalities that take part, with unit rows if `config.spherical`; and
        the modality weights beta (N, m) with `config.text_weight` in them, whose rows sum to 1: 0 for an image that is
        left out, the same in each row for `concat` and `sum`.
    """
    if config.center_modalities:
        parts = [normalize(part - mean, dim=1) for part, mean in zip(parts, means, strict=True)]
    if not config.image:
        parts = parts[1:]
    # Prior weights: 1 for the image, `text_weight` for texts, or 1 for all where the image takes no part.
    weight = torch.full((len(parts),), config.text_weight if config.image else 1.0).to(parts[0])
    weight[0] = 1.0
    # Texts of no weight leave the image alone, even where its share by Eq. 16 rounds to 0.
    if config.fusion == "prototype" and (config.text_weight or not config.image):
        z, beta = fuse(parts, gamma=config.gamma)
        if config.image:
            # sum_m weight_m beta_m x_m, out of the sum without weights
            extra = (1 - config.text_weight) * beta[:, :1]
            z = config.text_weight * z + extra * parts[0]
            if not config.spherical:  # else its length is of no account
                z = z / (config.text_weight + extra)  # sum_m weight_m beta_m
        beta = beta * weight
    else:
        weighted = [factor * part for factor, part in zip(weight, parts, strict=True)]
        z = torch.cat(weighted, dim=1) if config.fusion == "concat" else torch.stack(weighted).sum(dim=0)
        beta = weight.expand(len(z), -1)
    beta = torch.nn.functional.pad(beta / beta.sum(dim=1, keepdim=True), (0 if config.image else 1, 0))
    return (normalize(z, dim=1) if config.spherical else z), beta
