"""Float64 oracle: the equations as they are written."""

import torch
from torch import Tensor


def fuse(parts: tuple[Tensor, ...], *, gamma: float) -> tuple[Tensor, Tensor]:
    """The public op in float64."""
    x = torch.stack([part.double() for part in parts], dim=1)
    prototype = x.mean(dim=1, keepdim=True)
    alpha = (_unit(x) * _unit(prototype)).sum(dim=2)
    beta = torch.softmax(alpha / gamma, dim=1)
    return (beta[:, :, None] * x).sum(dim=1), beta


def _unit(v: Tensor) -> Tensor:
    """Directions (N, m, D); 0, and constant, for a zero vector."""
    length = torch.linalg.vector_norm(v, dim=2, keepdim=True)
    return v / length.where(length > 0, torch.inf)
