"""Dense float64 oracle: the (T, n) matrix of Eq. 2, ranked by stable sorts."""

import torch
from torch import Tensor


def retrieve(texts: Tensor, centers: Tensor, *, top_k: int, mode: str) -> Tensor:
    """The public op on a (T, n) matrix."""
    log_p = torch.log_softmax(texts.double() @ centers.double().T, dim=1)
    if mode == "assigned":
        best = log_p.argmax(dim=1, keepdim=True)
        log_p = torch.full_like(log_p, -torch.inf).scatter(1, best, log_p.gather(1, best))
    ranked = log_p.sort(dim=0, descending=True, stable=True)
    return ranked.indices[:top_k][ranked.values[:top_k] > -torch.inf].unique()
