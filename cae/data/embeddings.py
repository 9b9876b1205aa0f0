"""Embeddings made elsewhere: in memory, or in a file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cae.data.base import Data
from cae.data.labels import class_numbers
from cae.data.vector_files import READERS, EmbeddingError, read_vectors, readable_by_torch, refuse_broken_rows

__all__ = ["READERS", "EmbeddingData", "EmbeddingError", "read_embeddings"]

Arrays = tuple[np.ndarray, np.ndarray | None]


def read_embeddings(path: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None) -> Arrays:
    """Embeddings (N, D) of a file, and classes (N,) where it has any.

    Args:
        path: .npy, mapped into memory; .safetensors with `embeddings` or `embedding`, and perhaps `labels`; .parquet
            with `embedding` or `embeddings`, and perhaps `label`; or a folder of clip-retrieval.
        labels: a .npy file of N classes in place of those in the file; for a .npy file by default STEM.labels.npy, if
            there is one.

    Raises:
        EmbeddingError: no such file, of another kind, or without what is needed; labels that are floats.

    Examples:
        >>> np.save("two.npy", np.eye(2, dtype=np.float32))
        >>> np.save("two.labels.npy", np.array([0, 1]))
        >>> read_embeddings("two.npy")[0].shape
        (2, 2)
    """
    found = read_vectors(path, labels=None if labels is None else Path(labels))
    return found.x, found.labels


class EmbeddingData(Data):
    """Embeddings for `trainer.fit`, `predict` and `test` of a `CAE`: dicts of `embedding`, `index` and perhaps `label`.

    Args:
        source: (N, D) as tensor or array; a file or folder that `read_embeddings` reads, or a list of files, which are
            read into memory as one; or a table with a column `embedding` and perhaps `label`: a pandas data frame, an
            Arrow table or a split of a Hugging Face data set.
        labels: (N,) classes, whole numbers of any dtype or strings; or a .npy file of them.
        batch_size: rows per batch.
        num_workers: processes that read; None for as many as there are cores for, up to 8.

    Raises:
        EmbeddingError: the source cannot be used, shapes do not fit, or labels are floats; from the loader where a row
            is not finite or zero. The message names the file and the row.

    Example:
        >>> data = EmbeddingData(torch.eye(3), ["ant", "bee", "ant"])
        >>> data.labels
        tensor([0, 1, 0])
    """

    def __init__(
        self,
        source: Any,
        labels: Tensor | np.ndarray | Sequence[Any] | str | os.PathLike[str] | None = None,
        *,
        batch_size: int = 4096,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self._place: Callable[[int], str] = _place_in_memory
        if isinstance(source, Tensor):
            self.x = source
        elif isinstance(source, np.ndarray):
            self.x = _tensor_of(source)
        else:
            path = Path(labels) if isinstance(labels, str | os.PathLike) else None
            found = read_vectors(source, labels=path)
            labels = found.labels if path is not None or labels is None else labels
            self.x, self._place = torch.from_numpy(found.x), found.place
        if self.x.ndim != 2 or not self.x.is_floating_point():
            raise EmbeddingError(f"expected embeddings (N, D), got {self.x.dtype} of shape {tuple(self.x.shape)}")
        if isinstance(labels, str | os.PathLike):
            raise EmbeddingError(f"labels in a file belong to embeddings in a file; read {labels} with numpy.load")
        try:
            self.labels = None if labels is None else class_numbers(labels)
        except ValueError as error:
            raise EmbeddingError(str(error)) from error
        if self.labels is not None and self.labels.shape != (len(self.x),):
            raise EmbeddingError(f"{len(self.x)} embeddings, but labels of shape {tuple(self.labels.shape)}")

    def loader(self) -> DataLoader[Any]:
        """All rows."""
        dataset = self._rows()
        return DataLoader(
            dataset,
            sampler=self.sampler(dataset),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
        )

    def _rows(self) -> _Rows:
        return _Rows(self.x, self.labels, self._place)


class _Rows(Dataset[Any]):
    """Fetches a whole batch at once: row by row, collating would take longer than all the rest."""

    def __init__(self, x: Tensor, labels: Tensor | None, place: Callable[[int], str]) -> None:
        self.x, self.labels, self.place = x, labels, place

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        index = torch.tensor(rows)
        batch = {"embedding": self.x[index], "index": index}
        refuse_broken_rows(batch["embedding"], lambda row: self.place(rows[row]))
        return batch if self.labels is None else {**batch, "label": self.labels[index]}


def _tensor_of(x: np.ndarray) -> Tensor:
    """An array as a tensor, in the same memory where torch can use it: that of a memory map is only to be read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing is written
        return torch.from_numpy(np.ascontiguousarray(readable_by_torch(x)))


def _place_in_memory(row: int) -> str:
    return f"row {row} (the first is 0) of the embeddings"


def _as_it_is(batch: Any) -> Any:
    return batch
