"""The largest entries of each row in an order that depends on nothing but the values: ties go to the lowest index."""

import torch
from torch import Tensor


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest entries of each row and their columns, descending; equal entries by ascending column.

    Args:
        scores: (R, C) float32, no NaN.
        k: at most C.

    Returns:
        values (R, k) float32 and columns (R, k) int64.
    """
    if k == 1:  # documented to return the first of equal maxima, unlike topk
        values, columns = scores.max(dim=1, keepdim=True)
        return values, columns
    columns = sort_keys(scores).topk(k, dim=1).values.bitwise_and(_LOW).sub(_LOW).neg()
    return scores.gather(1, columns), columns


def sort_keys(scores: Tensor) -> Tensor:
    """Distinct int64 keys in the order of (score, lowest column first), which makes `topk` unambiguous.

    The upper half holds the float32 as an integer of the same order, the lower half the complement of the column.
    """
    bits = (scores + 0.0).view(torch.int32)  # adding 0 turns -0 into +0: the two compare equal
    ordered = torch.where(bits < 0, bits.bitwise_xor(0x7FFFFFFF), bits).to(torch.int64)
    column = torch.arange(scores.shape[1], device=scores.device)
    return ordered.bitwise_left_shift_(32).bitwise_or_(_LOW - column)


_LOW = 0xFFFFFFFF
