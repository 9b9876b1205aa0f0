"""Nearest neighbours of every image, of which training draws one at a time."""

from __future__ import annotations

import faiss
import numpy as np
import torch
from torch import Tensor


def nearest_neighbours(x: Tensor, k: int) -> Tensor:
    """The k nearest other rows of each row by cosine; FAISS searches block by block and never holds (N, N).

    Args:
        x: (N, D) float32 unit rows, N at least 2.
        k: number of neighbours; N - 1 where there are not so many others.

    Returns:
        (N, k) int64 on the CPU, nearest first; a row is never its own neighbour.
    """
    rows = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=np.float32)
    k = min(k, len(rows) - 1)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    found = torch.from_numpy(index.search(rows, k + 1)[1])
    # A row usually finds itself first; duplicates may come before it, or push it out.
    itself = found == torch.arange(len(rows)).unsqueeze(1)
    itself[:, -1] |= ~itself.any(dim=1)
    return found[~itself].reshape(len(rows), k)


def draw_neighbours(neighbours: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """One neighbour of each of B rows, all equally likely.

    Args:
        neighbours: (N, k) from `nearest_neighbours`.
        rows: (B,) int64 on the CPU.
        generator: random generator of the draw.

    Returns:
        (B,) int64.
    """
    chosen = torch.randint(neighbours.shape[1], (len(rows),), generator=generator)
    return neighbours[rows, chosen]
