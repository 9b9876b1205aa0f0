"""A uniform sample of a stream whose length is not known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Reservoir:
    """Keeps `capacity` rows of all that are added, each with the same chance, without replacement.

    Each row draws a random key and the rows with the smallest keys stay (bottom-k sampling, Cohen and Kaplan 2007). In
    this form of reservoir sampling the samples of parts of a stream merge into a sample of the whole.

    Args:
        capacity: most rows to keep.
        seed: seed of the keys; the same stream and seed give the same sample. The global generators are left alone.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self._generator = torch.Generator().manual_seed(seed)
        self._limit = float("inf")
        self._seen = self._held = 0
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, *columns: Tensor) -> None:
        """Take the next B rows of the stream, as tensors (B, …) on any device; every call brings the same columns."""
        keys = torch.rand(len(columns[0]), generator=self._generator, dtype=torch.float64)
        positions = torch.arange(self._seen, self._seen + len(keys))
        self._seen += len(keys)
        # Select on the tensors' own device. Selecting copies, so the caller may change its tensors afterwards.
        kept = (keys < self._limit).nonzero().squeeze(1)
        rows = (column.detach()[kept.to(column.device)].cpu() for column in columns)
        self._parts.append((keys[kept], positions[kept], *rows))
        self._held += len(kept)
        if self._held > 2 * self.capacity:
            self._parts, self._held = [smallest(self._parts, self.capacity)], self.capacity
            self._limit = float(self._parts[0][0].max())

    def sample(self) -> tuple[Tensor, ...] | None:
        """Keys (n,) float64, positions in the stream (n,) int64, and the columns; None if nothing was added."""
        return smallest(self._parts, self.capacity) if self._parts else None


def smallest(parts: Sequence[tuple[Tensor, ...]], capacity: int) -> tuple[Tensor, ...]:
    """The rows with the `capacity` smallest keys, in the order of their positions and then of the parts.

    Args:
        parts: tuples of columns, keys and positions first. In the order of ranks they come out as a DistributedSampler
            dealt them: in the order of the data set.
        capacity: most rows to keep.
    """
    columns = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    kept = columns[0].argsort(stable=True)[:capacity].sort().values
    kept = kept[columns[1][kept].argsort(stable=True)]
    return tuple(column[kept] for column in columns)
