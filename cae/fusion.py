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
        config: gives fusion, gamma and the geometry of the last k-means.

    Returns:
        z (N, D), or for `concat` (N, D) times the modalities that take part, with unit rows if `config.spherical`; and
        the modality weights beta (N, m), whose rows sum to 1: 0 for an image that is left out, 1 / m for `concat` and
        `sum`.
    """
    if config.center_modalities:
        parts = [normalize(part - mean, dim=1) for part, mean in zip(parts, means, strict=True)]
    left_out = 0 if config.image else 1
    parts = list(parts)[left_out:]
    if config.fusion == "prototype":
        z, beta = fuse(parts, gamma=config.gamma)
    else:
        z = torch.cat(parts, dim=1) if config.fusion == "concat" else torch.stack(parts).sum(dim=0)
        beta = torch.full((len(z), len(parts)), 1 / len(parts)).to(z)
    beta = torch.nn.functional.pad(beta, (left_out, 0))
    return (normalize(z, dim=1) if config.spherical else z), beta
