"""Triton backend: the normaliser of each text, then the nearest texts of each center with that as bias."""

import torch
from torch import Tensor

from ..nearest.triton import LONGEST_LIST, nearest
from ..triton import SoftmaxPanel
from . import torch as streaming
from .torch import leaders


def retrieve(texts: Tensor, centers: Tensor, *, top_k: int, mode: str) -> Tensor:
    """The public op; arguments as checked there."""
    if len(centers) == 1:  # all probabilities are 1, and rounding is not to rank them
        return torch.arange(top_k, device=texts.device)
    if mode == "all" and top_k > LONGEST_LIST:
        return streaming.retrieve(texts, centers, top_k=top_k, mode=mode)
    log_z = _log_normalizers(texts.contiguous(), centers.contiguous())
    if mode == "assigned":
        owner, similarity = nearest(texts, centers, k=1, bias=None)
        return leaders(similarity[:, 0] - log_z, owner[:, 0], len(centers), top_k)
    # log p_ij = u_i·p_j - log z_i (Eq. 2): to a center the texts' normalisers are a bias.
    indices, _ = nearest(centers, texts, k=top_k, bias=-log_z)
    return indices.unique()


def _log_normalizers(texts: Tensor, centers: Tensor) -> Tensor:
    """(T,) logsumexp_l(u_i·p_l), by tiles of which only maxima and sums are kept."""
    bias = torch.zeros(len(centers), dtype=torch.float32, device=texts.device)
    log_z = torch.empty(len(texts), dtype=torch.float32, device=texts.device)
    with torch.cuda.device_of(texts):
        panel = SoftmaxPanel(texts, centers, dtype=None)
        for rows in panel:
            panel.fill(rows, scale=1.0, bias=bias, log_z=log_z)
    return log_z
