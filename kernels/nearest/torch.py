"""Streaming backend: panels of rows with blocks of centroids, in float32."""

import torch
from torch import Tensor

from ..products import inner_products
from ..ranking import RunningLargest
from ..tiles import block_columns, panels


def nearest(x: Tensor, centroids: Tensor, *, k: int, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels and similarities, each (N, k); arguments as checked in the public op."""
    N, C = x.shape[0], centroids.shape[0]
    centroids, width = centroids.float(), min(C, block_columns(x.device))
    labels = torch.empty(N, k, dtype=torch.int64, device=x.device)
    similarity = torch.empty(N, k, dtype=torch.float32, device=x.device)
    for rows in panels(N, width, x.device):
        images, best = x[rows].float(), RunningLargest(k)
        for first in range(0, C, width):
            scores = inner_products(images, centroids[first : first + width])
            if bias is not None:
                scores += bias[first : first + width]
            best.add(scores, first)
        similarity[rows], labels[rows] = best.result()
    return labels, similarity
