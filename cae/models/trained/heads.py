"""The networks: cluster heads, and the adapters of MCA."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import skip_init

HEAD_STD = 0.02


def cluster_head(dim: int, n_clusters: int, seed: int) -> nn.Sequential:
    """TAC's head: Linear(D, D) - BatchNorm - ReLU - Linear(D, K) - softmax.

    Args:
        dim: D.
        n_clusters: K.
        seed: seed of the weights, truncated normal with standard deviation 0.02; biases start at 0.
    """
    # Without PyTorch's own weights, which the caller's random numbers would go into.
    first, last = (skip_init(nn.Linear, dim, width) for width in (dim, n_clusters))
    head = nn.Sequential(first, nn.BatchNorm1d(dim), nn.ReLU(), last, nn.Softmax(dim=1))
    generator = torch.Generator().manual_seed(seed)
    for layer in (first, last):
        nn.init.trunc_normal_(layer.weight, std=HEAD_STD, generator=generator)
        nn.init.zeros_(layer.bias)
    return head


class Adapter(nn.Module):
    """A residual linear map of unit rows to unit rows, unit(x + A x), that starts as the identity.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = skip_init(nn.Linear, dim, dim, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) unit rows to (B, D) unit rows."""
        return normalize(x + self.linear(x), dim=1)
