"""The graph of nearest neighbours, which spectral clustering cuts and the number of clusters is judged on."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from torch import Tensor

from cae.kernels import nearest

NEIGHBOURS = 15
"""Edges that each image starts."""


def neighbour_graph(rows: Tensor, k: int = NEIGHBOURS) -> csr_array:
    """The graph that joins each image to its nearest neighbours by cosine.

    The neighbours come from the kernel `nearest`, in full float32, on the rows' device and without an N x N matrix.

    Args:
        rows: (N, D) float32 unit rows, N at least 2.
        k: number of neighbours of each image, not counting itself; N - 1 if that is less.

    Returns:
        (N, N) symmetric float64 weights: 1 where two images are among each other's neighbours, 1/2 where one is.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
        >>> neighbour_graph(rows, k=1).toarray().tolist()
        [[0.0, 0.5, 0.0], [0.5, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    n = len(rows)
    k = min(k, n - 1)
    found = nearest(rows, rows, k=k + 1).labels.cpu().numpy()
    itself = found == np.arange(n)[:, None]
    # Among many equal images the image itself may not be found; then drop the farthest neighbour.
    itself[~itself.any(axis=1), -1] = True
    neighbours = found[~itself]
    graph = csr_array((np.full(n * k, 0.5), neighbours, np.arange(0, n * k + 1, k)), shape=(n, n))
    return csr_array(graph + graph.T)
