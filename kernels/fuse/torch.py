"""Streaming backend: panels of rows, all modalities at once, in float32."""

import torch
from torch import Tensor

from ..tiles import panels


def fuse(parts: tuple[Tensor, ...], *, gamma: float) -> tuple[Tensor, Tensor]:
    """The public op; arguments as checked there."""
    (N, D), m, device = parts[0].shape, len(parts), parts[0].device
    fused = torch.empty_like(parts[0])
    beta = torch.empty(N, m, dtype=torch.float32, device=device)
    for rows in panels(N, m * D, device):
        x = torch.stack([part[rows] for part in parts], dim=1).float()
        prototype = x.mean(dim=1, keepdim=True)
        alpha = torch.nn.functional.cosine_similarity(x, prototype, dim=2, eps=1e-30)
        beta[rows] = torch.softmax(alpha / gamma, dim=1)
        fused[rows] = torch.bmm(beta[rows, None], x)[:, 0]
    return fused, beta
