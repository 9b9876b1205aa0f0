"""Row blocks of one fixed size, so that an image's result does not depend on its company.

A matrix product may round a row differently when the number of rows changes, and a label on the border of two clusters
could then flip between fit and predict. Every per-image stage therefore sees blocks of exactly `BLOCK_ROWS` rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK_ROWS = 256


def blockwise(stage: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
    """Apply a per-row stage block by block and put the results together.

    Args:
        stage: takes one block (BLOCK_ROWS, …) of each tensor and returns tensors with as many rows.
        rows: tensors with the same number N of rows, N at least 1.

    Returns:
        The stage's tensors for all N rows. Bit for bit the same for a row whatever rows surround it.
    """
    results = [
        tuple(out[: len(block[0])] for out in stage(*map(_fill, block)))
        for block in zip(*(tensor.split(BLOCK_ROWS) for tensor in rows), strict=True)
    ]
    return tuple(torch.cat(column) for column in zip(*results, strict=True))


def _fill(block: Tensor) -> Tensor:
    """Repeat the last row until the block is full."""
    missing = BLOCK_ROWS - len(block)
    return block if missing == 0 else torch.cat([block, block[-1:].expand(missing, *block.shape[1:])])
