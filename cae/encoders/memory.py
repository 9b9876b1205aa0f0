"""Encoding where memory may run out."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


def encode_in_halves(batch: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Encode a batch; if memory runs out, encode it in halves, which are halved again if need be.

    Warns once. Vectors of a halved batch may differ in the last bits from those of a whole one.

    Args:
        batch: (B, …), B at least 1.
        encode: (b, …) to (b, D) for any b.

    Returns:
        (B, D).

    Raises:
        RuntimeError: the memory does not do for a single row, or what `encode` raises.
    """
    try:
        return encode(batch)
    except (RuntimeError, MemoryError) as error:
        from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error  # takes seconds to import

        # Lightning knows those of CUDA and of torch on the CPU.
        if not (isinstance(error, MemoryError) or is_oom_error(error)) or len(batch) == 1:
            raise
    # Outside of the handler: the error holds on to what was allocated.
    warnings.warn("out of memory: going on with smaller batches, which takes longer", stacklevel=1)  # one place: once
    garbage_collection_cuda()
    half = len(batch) // 2
    return torch.cat([encode_in_halves(part, encode) for part in (batch[:half], batch[half:])])
