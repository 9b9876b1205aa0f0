"""Sparse matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array


def incidence(columns: Sequence[Sequence[int]], n: int) -> csr_array:
    """A sparse (len(columns), n) float32 matrix with ones in the columns of each row.

    Examples:
        >>> incidence([[2, 0], [], [1]], 3).toarray()
        array([[1., 0., 1.],
               [0., 0., 0.],
               [0., 1., 0.]], dtype=float32)
    """
    starts = np.cumsum([0, *map(len, columns)])
    flat = np.fromiter((column for row in columns for column in row), dtype=np.int64, count=starts[-1])
    return csr_array((np.ones(len(flat), dtype=np.float32), flat, starts), shape=(len(columns), n))
