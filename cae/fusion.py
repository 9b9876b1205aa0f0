"""Adaptive semantics fusion (Eq. 14-17), and the plainer ones it is compared with (Table 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cae.config import CAEConfig
from cae.kernels import fuse
from cae.stopwatch import stage


@stage("fusion")
def modality_means(parts: Sequence[Tensor], config: CAEConfig) -> Tensor:
    """What `fuse_modalities` subtracts: (m, D) float32, zero where the config does not centre."""
    if not config.center_modalities:
        return torch.zeros(len(parts), parts[0].shape[1], device=parts[0].device)
    # float64: a float32 sum over a million rows loses the digits that centring is about.
    return torch.stack([part.mean(dim=0, dtype=torch.float64).float() for part in parts])


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
    # What each modality counts for before its similarity does; texts beside no image count in full.
    weight = torch.full((len(parts),), config.text_weight if config.image else 1.0).to(parts[0])
    weight[0] = 1.0
    if config.fusion == "prototype":
        z, beta = fuse(parts, gamma=config.gamma)
        if config.image:
            # sum_m weight_m beta_m x_m, out of the sum without weights
            z = config.text_weight * z + (1 - config.text_weight) * beta[:, :1] * parts[0]
        beta = beta * weight
    else:
        weighted = [factor * part for factor, part in zip(weight, parts, strict=True)]
        z = torch.cat(weighted, dim=1) if config.fusion == "concat" else torch.stack(weighted).sum(dim=0)
        beta = weight.expand(len(z), -1)
    beta = torch.nn.functional.pad(beta / beta.sum(dim=1, keepdim=True), (0 if config.image else 1, 0))
    return (normalize(z, dim=1) if config.spherical else z), beta
