"""Streaming backend: panels of rows with all centroids, in float32."""

import torch
from torch import Tensor

from cae.kernels.ranking import largest
from cae.kernels.tiles import panels


def nearest(x: Tensor, centroids: Tensor, *, k: int, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels and similarities, each (N, k); arguments as checked in the public op."""
    N, C = x.shape[0], centroids.shape[0]
    centroids = centroids.float()
    labels = torch.empty(N, k, dtype=torch.int64, device=x.device)
    similarity = torch.empty(N, k, dtype=torch.float32, device=x.device)
    for rows in panels(N, C, x.device):
        scores = x[rows].float() @ centroids.T
        if bias is not None:
            scores += bias
        similarity[rows], labels[rows] = largest(scores, k)
    return labels, similarity
