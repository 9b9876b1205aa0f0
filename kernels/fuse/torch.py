"""Streaming backend: panels of rows, one modality after another, in float32."""

from functools import reduce

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..tiles import panels


def fuse(parts: tuple[Tensor, ...], *, gamma: float) -> tuple[Tensor, Tensor]:
    """The public op; arguments as checked there."""
    (N, D), m, device = parts[0].shape, len(parts), parts[0].device
    fused = torch.empty_like(parts[0])
    beta = torch.empty(N, m, dtype=torch.float32, device=device)
    for rows in panels(N, m * D, device):
        # A list: stacked they would be copied, and reduced along strides.
        x = [part[rows].float() for part in parts]
        prototype = torch.nn.functional.normalize(reduce(torch.add, x), dim=1, eps=_TINY)
        alpha = [vecdot(part, prototype) / vector_norm(part, dim=1).clamp_min(_TINY) for part in x]
        beta[rows] = torch.softmax(torch.stack(alpha, dim=1) / gamma, dim=1)
        z = x[0] * beta[rows, :1]
        for index in range(1, m):
            z.addcmul_(x[index], beta[rows, index, None])
        fused[rows] = z
    return fused, beta


# For a length of 0, so that the cosine is 0.
_TINY = 1e-30
