"""Exact text encoding without padding: every batch holds texts of one length.

A padded batch spends most of its work on padding: noun prompts have 5 to 12 tokens, CLIP pads to 77. Two kinds of tower
give the same vectors without it: a causal one read out at its last token (CLIP), because nothing before that token ever
sees what follows, and one that masks padding (BERT), because the mask is then empty.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cae.encoders.memory import encode_in_halves

# Tokens in one batch. A CPU is as fast from 512 on, and larger batches wait less for its cores; a GPU wants filling.
TOKENS_ON_CPU = 2048
TOKENS_ON_GPU = 65536


def encode_by_length(lengths: Tensor, encode: Callable[[Tensor, int], Tensor], out: Tensor) -> None:
    """Encode texts in batches of equal length.

    Args:
        lengths: (T,) int64 on the CPU, the number of tokens of each text, at least 1.
        encode: Takes the indices (B,) of texts of one length and that length, and returns their vectors (B, D).
        out: (T, D) filled with the vectors in the order of `lengths`.
    """
    budget = TOKENS_ON_CPU if out.device.type == "cpu" else TOKENS_ON_GPU
    order = torch.argsort(lengths, stable=True)
    values, counts = torch.unique_consecutive(lengths[order], return_counts=True)
    for length, group in zip(values.tolist(), order.split(counts.tolist()), strict=True):
        for index in group.split(max(1, budget // length)):
            vectors = encode_in_halves(index, lambda part, length=length: encode(part, length))  # type: ignore[misc]
            out[index.to(out.device)] = vectors
