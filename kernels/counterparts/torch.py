"""Streaming backend: panels of rows with all columns, both products in float32."""

import torch
from torch import Tensor

from ..products import inner_products
from ..tiles import panels


def counterparts(
    x: Tensor, u: Tensor, g: Tensor, *, epsilon: float, normalize: bool, similarity_weight: bool
) -> Tensor:
    """The public op; arguments as checked there."""
    texts, log_v = u.float(), g.float() / epsilon
    y = torch.empty_like(x)
    for rows in panels(x.shape[0], u.shape[0], x.device):
        s = inner_products(x[rows].float(), texts)
        t = torch.softmax(torch.add(log_v, s, alpha=1 / epsilon), dim=1)
        panel = (t.mul_(s) if similarity_weight else t) @ texts
        y[rows] = torch.nn.functional.normalize(panel, dim=1) if normalize else panel
    return y
