"""Streaming backend: panels of texts with all centers, and a running top-k or one winner a text."""

import torch
from torch import Tensor

from ..products import inner_products
from ..ranking import RunningLargest
from ..tiles import panels


def retrieve(texts: Tensor, centers: Tensor, *, top_k: int, mode: str) -> Tensor:
    """The public op; arguments as checked there."""
    return {"all": _all, "assigned": _assigned}[mode](texts, centers, top_k)


def _all(texts: Tensor, centers: Tensor, top_k: int) -> Tensor:
    centers, best = centers.float(), RunningLargest(top_k)
    for rows in panels(texts.shape[0], centers.shape[0], texts.device):
        s = inner_products(centers, texts[rows].float())
        best.add(s.sub_(torch.logsumexp(s, dim=0)), rows.start)
    return best.result()[1].unique()


def _assigned(texts: Tensor, centers: Tensor, top_k: int) -> Tensor:
    T, n = texts.shape[0], centers.shape[0]
    centers = centers.float()
    score = centers.new_empty(T)
    owner = torch.empty(T, dtype=torch.int64, device=texts.device)
    for rows in panels(T, n, texts.device):
        s = inner_products(texts[rows].float(), centers)
        best, owner[rows] = s.max(dim=1)
        score[rows] = best - torch.logsumexp(s, dim=1)
    return leaders(score, owner, n, top_k)


def leaders(score: Tensor, owner: Tensor, n: int, top_k: int) -> Tensor:
    """Sorted indices of the `top_k` highest scores within each owner; equal scores by ascending index.

    Args:
        score: (T,) float32.
        owner: (T,) int64 in [0, n).
        n: number of owners.
        top_k: at least 1.
    """
    order = score.sort(descending=True, stable=True).indices
    order = order[owner[order].sort(stable=True).indices]
    size = torch.bincount(owner, minlength=n)
    start = size.cumsum(0) - size
    rank = torch.arange(len(order), device=order.device) - start[owner[order]]
    return order[rank < top_k].sort().values
