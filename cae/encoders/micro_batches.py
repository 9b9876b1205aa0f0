"""Image encoding whose result does not depend on the batch an image comes in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cae.encoders.memory import encode_in_halves


def encode_in_micro_batches(images: Tensor, size: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Encode images in batches of one fixed size, the last one padded with zeros.

    Matrix libraries choose their kernels, and with them the order of their sums, by shape: an image encoded alone and
    in a batch of 64 differs in the last bits. At one fixed shape it does not.

    Args:
        images: (B, 3, H, W), B ≥ 1.
        size: Images in a micro-batch.
        encode: (size, 3, H, W) ↦ (size, D), and fewer where memory runs out.

    Returns:
        (B, D).
    """
    parts = []
    for part in images.split(size):
        missing = size - len(part)
        padded = torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part
        parts.append(encode_in_halves(padded, encode)[: len(part)])
    return torch.cat(parts)
