"""Row blocks of one fixed size, so that the result of an image does not depend on the other images.

A matrix product may round a row differently when the number of rows changes, and a label on the border of two clusters
could then flip between fit and predict. Every per-image stage therefore sees blocks of exactly `BLOCK_ROWS` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BLOCK_ROWS = 256

CHUNK_ROWS = 8192
"""Rows at once where blocks are there to save memory alone."""


def blockwise(stage: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
    """Apply a per-row stage block by block and put the results together.

    Args:
        stage: takes one block (BLOCK_ROWS, …) of each tensor and returns tensors with as many rows.
        rows: tensors with the same number N of rows.

    Returns:
        The stage's tensors for all N rows. A row's result is the same, bit for bit, whatever the other rows are.
    """
    # Write each block into the result: concatenating a list of blocks at the end would take twice the memory.
    results: tuple[Tensor, ...] = ()
    for block, place in row_blocks(*rows):
        outs = stage(*block)
        results = results or tuple(out.new_empty(len(rows[0]), *out.shape[1:]) for out in outs)
        for result, out in zip(results, outs, strict=True):
            result[place] = out[: place.stop - place.start]
    return results


def row_blocks(*rows: Tensor) -> Iterator[tuple[tuple[Tensor, ...], slice]]:
    """Blocks of each tensor, filled up to BLOCK_ROWS, and the slice of rows that each stands for; it may be empty."""
    n = len(rows[0])
    for start in range(0, max(n, 1), BLOCK_ROWS):
        place = slice(start, min(start + BLOCK_ROWS, n))
        yield tuple(_fill(tensor[place]) for tensor in rows), place


def _fill(block: Tensor) -> Tensor:
    """Repeat the last row until the block is full; without any row, one of unit length."""
    missing = BLOCK_ROWS - len(block)
    if missing == BLOCK_ROWS:
        block = block.new_zeros(1, *block.shape[1:])
        block[..., 0] = 1
        missing -= 1
    return block if missing == 0 else torch.cat([block, block[-1:].expand(missing, *block.shape[1:])])
