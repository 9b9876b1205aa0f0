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


class RunningLargest:
    """The `k` largest entries of each row of a matrix that is seen a block of columns at a time, in order.

    Once k are known a block is compared with the least of them, in one pass, and few of its entries are larger: these
    wait beside the known ones, and are merged with them when there is no room for more.
    """

    def __init__(self, k: int) -> None:
        """Begin with none.

        Args:
            k: at least 1; all entries where there are fewer.
        """
        self.k = k
        self.waiting: Tensor | None = None

    def add(self, scores: Tensor, first: int) -> None:
        """Take in the next block.

        Args:
            scores: (R, B) float32, no NaN.
            first: number of the block's first column, 0 for the first block.
        """
        if first == 0:
            self.values, self.columns = largest(scores, min(self.k, scores.shape[1]))
        elif self.values.shape[1] < self.k:
            self._merge_whole(scores, first)
        else:
            self._add_larger(scores, first)

    def result(self) -> tuple[Tensor, Tensor]:
        """Values (R, k) float32 and columns (R, k) int64, as `largest` gives them for the whole matrix."""
        if self.waiting is not None:
            self._merge_waiting(self.waiting)
        return self.values, self.columns

    def _make_room(self, rows: int, width: int) -> Tensor:
        """For values (rows, width), -inf where none waits, their columns, and how many wait in each row.

        Made once, since small tensors that stay would cut up the memory that large ones leave.
        """
        self.waiting_values = self.values.new_full((rows, width), -torch.inf)
        self.waiting_columns = self.columns.new_zeros(rows, width)
        return self.columns.new_zeros(rows)

    def _add_larger(self, scores: Tensor, first: int) -> None:
        rows, columns = true_entries(scores > self.values[:, -1:])  # an equal one comes later and so loses
        size = torch.bincount(rows, minlength=len(scores))
        if self.waiting is None:
            self.waiting = self._make_room(len(scores), self.k + scores.shape[1] // 16)
        if int((self.waiting + size).max()) > self.waiting_values.shape[1]:
            self._merge_waiting(self.waiting)
            if int(size.max()) > self.waiting_values.shape[1]:
                self._merge_whole(scores, first)
                return
        places = torch.arange(len(rows), device=rows.device) + (self.waiting + size - size.cumsum(0))[rows]
        self.waiting_values[rows, places] = scores[rows, columns]
        self.waiting_columns[rows, places] = columns + first
        self.waiting += size

    def _merge_whole(self, scores: Tensor, first: int) -> None:
        columns = torch.arange(first, first + scores.shape[1], device=scores.device)
        self._merge(scores, columns.expand(scores.shape))

    def _merge_waiting(self, waiting: Tensor) -> None:
        if width := int(waiting.max()):
            self._merge(self.waiting_values[:, :width], self.waiting_columns[:, :width])
            self.waiting_values.fill_(-torch.inf)
            waiting.zero_()

    def _merge(self, scores: Tensor, columns: Tensor) -> None:
        """Entries (R, B) that stand after the known ones, so that a tie goes to those."""
        scores, columns = torch.cat([self.values, scores], dim=1), torch.cat([self.columns, columns], dim=1)
        self.values, places = largest(scores, min(self.k, scores.shape[1]))
        self.columns = columns.gather(1, places)


def true_entries(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the few true entries of (R, B), by row and then by column."""
    if mask.shape[1] % 8:
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns
    # Eight at a time: `nonzero` takes as long for a byte as for eight.
    rows, groups = mask.view(torch.int64).nonzero(as_tuple=True)
    found, places = mask.view(len(mask), -1, 8)[rows, groups].nonzero(as_tuple=True)
    return rows[found], 8 * groups[found] + places


def sort_keys(scores: Tensor) -> Tensor:
    """Distinct int64 keys in the order of (score, lowest column first), which makes `topk` unambiguous.

    The upper half holds the float32 as an integer of the same order, the lower half the complement of the column.
    """
    bits = (scores + 0.0).view(torch.int32)  # adding 0 turns -0 into +0: the two compare equal
    ordered = torch.where(bits < 0, bits.bitwise_xor(0x7FFFFFFF), bits).to(torch.int64)
    column = torch.arange(scores.shape[1], device=scores.device)
    return ordered.bitwise_left_shift_(32).bitwise_or_(_LOW - column)


_LOW = 0xFFFFFFFF
