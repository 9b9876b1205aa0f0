"""Adaptive semantics fusion (Eq. 14-17) and the concatenation that TAC uses instead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cae.config import CAEConfig
from cae.kernels import fuse


def modality_means(parts: Sequence[Tensor], config: CAEConfig) -> Tensor:
    """What `fuse_modalities` subtracts: (m, D) float32, zero where the config does not centre."""
    if not config.center_modalities:
        return torch.zeros(len(parts), parts[0].shape[1], device=parts[0].device)
    # float64: a float32 sum over a million rows loses the digits that centring is about.
    return torch.stack([part.mean(dim=0, dtype=torch.float64).float() for part in parts])


def fuse_modalities(parts: Sequence[Tensor], means: Tensor, config: CAEConfig) -> tuple[Tensor, Tensor]:
    """Eq. 14-17: weigh each modality by its similarity to the prototype of all, and add them up.

    Args:
        parts: image embeddings and counterparts, m tensors (N, D) float32.
        means: (m, D) from `modality_means`, taken on the fitted images.
        config: gives fusion, gamma and the geometry of the last k-means.

    Returns:
        z (N, D), or (N, m * D) for `concat`, with unit rows if `config.spherical`; and the modality weights beta
        (N, m), whose rows sum to 1.
    """
    if config.center_modalities:
        parts = [normalize(part - mean, dim=1) for part, mean in zip(parts, means, strict=True)]
    if config.fusion == "concat":
        z, beta = torch.cat(list(parts), dim=1), torch.full((len(parts[0]), len(parts)), 1 / len(parts)).to(parts[0])
    else:
        z, beta = fuse(parts, gamma=config.gamma)
    return (normalize(z, dim=1) if config.spherical else z), beta
