"""Embeddings that somebody computed: in memory, or in a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cae.data.base import Data
from cae.scores import as_labels

Arrays = tuple[np.ndarray, np.ndarray | None]


class EmbeddingError(ValueError):
    """A file cannot be used as embeddings; the message says why."""


def read_embeddings(path: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None) -> Arrays:
    """Embeddings (N, D) of a file, and classes (N,) where it has any.

    Args:
        path: .npy, mapped into memory; .safetensors with `embeddings` and perhaps `labels`; or .parquet with
            `embedding`, and perhaps `label`.
        labels: a .npy file of N classes for a .npy file; STEM.labels.npy beside it by default, if there is one.

    Raises:
        EmbeddingError: no such file, of another kind, or without what is needed; labels that are floats.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise EmbeddingError(f"{path} is none of {', '.join(READERS)}, the files that embeddings are read from")
    if not path.is_file():
        raise EmbeddingError(f"no such file: {path}")
    try:
        x, classes = READERS[path.suffix](path, None if labels is None else Path(labels))
    except (OSError, EOFError, ValueError, TypeError, pa.ArrowException, SafetensorError) as error:
        raise EmbeddingError(f"{path} cannot be used as embeddings: {error}") from error
    if x.ndim != 2 or not len(x) or not np.issubdtype(x.dtype, np.floating):
        raise EmbeddingError(f"{path} holds {x.dtype} of shape {x.shape}, not embeddings (N, D)")
    # Torch takes numbers in the machine's own order of bytes alone, and none of more than eight bytes.
    x = (
        x
        if x.dtype.isnative and x.dtype.itemsize <= 8
        else x.astype(np.float32 if x.dtype.itemsize < 8 else np.float64)
    )
    if classes is not None and len(classes) != len(x):
        raise EmbeddingError(f"{path} holds {len(x)} embeddings, but there are {len(classes)} labels")
    if classes is not None and np.issubdtype(classes.dtype, np.inexact):
        raise EmbeddingError(
            f"the labels of {path} are {classes.dtype.name}, not classes: give names or whole numbers (.astype(int))"
        )
    return x, classes


def _npy(path: Path, labels: Path | None) -> Arrays:
    labels = labels or path.with_suffix(".labels.npy")
    # Copy on write, as torch wants writable memory; nobody writes.
    return _array(path, mmap_mode="c"), _array(labels).reshape(-1) if labels.is_file() else None


def _array(path: Path, **options: Any) -> np.ndarray:
    found = np.load(path, allow_pickle=False, **options)
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError("it is an archive of arrays under the ending of one")
    return found


def _safetensors(path: Path, labels: Path | None) -> Arrays:
    tensors = load_file(path)
    if "embeddings" not in tensors:
        raise ValueError(f"expected a tensor `embeddings`, found {', '.join(tensors)}")
    x, classes = tensors["embeddings"], tensors.get("labels")
    # numpy has no bfloat16
    x = x.float() if x.dtype == torch.bfloat16 else x
    return x.numpy(), None if classes is None else classes.numpy().reshape(-1)


def _parquet(path: Path, labels: Path | None) -> Arrays:
    names = pq.read_schema(path).names
    if "embedding" not in names:
        raise ValueError(f"expected a column `embedding`, found {', '.join(names)}")
    table = pq.read_table(path, columns=["embedding", *(["label"] if "label" in names else [])])
    column, row = table["embedding"], 0
    width = len(column[0]) if len(column) else 0
    x = np.empty((len(column), width), dtype=np.float32)
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        if chunk.null_count or len(values) != len(chunk) * width:
            raise ValueError(f"column `embedding` has rows that are not {width} numbers")
        x[row : row + len(chunk)] = values.reshape(len(chunk), width)
        row += len(chunk)
    return x, np.asarray(table["label"].to_pylist()) if "label" in names else None


READERS: dict[str, Callable[[Path, Path | None], Arrays]] = {
    ".npy": _npy,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
}


class EmbeddingData(Data):
    """Embeddings for `trainer.fit`, `predict` and `test` of a `CAE`: dicts of `embedding`, `index` and perhaps `label`.

    Args:
        source: (N, D) as tensor or array, or a file that `read_embeddings` reads.
        labels: (N,) classes, names or whole numbers of any dtype; or for a .npy file another one.
        batch_size: rows per batch.
        num_workers: processes that read; None for as many as there are cores for, up to 8.

    Raises:
        EmbeddingError: the file cannot be used, shapes do not fit, or labels are floats.
    """

    def __init__(
        self,
        source: Tensor | np.ndarray | str | os.PathLike[str],
        labels: Tensor | np.ndarray | str | os.PathLike[str] | None = None,
        *,
        batch_size: int = 4096,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if isinstance(source, str | os.PathLike):
            path = labels if isinstance(labels, str | os.PathLike) else None
            x, classes = read_embeddings(source, path)
            labels = classes if path is not None or labels is None else labels
            self.x = torch.from_numpy(x)
        else:
            self.x = torch.as_tensor(source)
        if self.x.ndim != 2 or not self.x.is_floating_point():
            raise EmbeddingError(f"expected embeddings (N, D), got {self.x.dtype} of shape {tuple(self.x.shape)}")
        assert not isinstance(labels, str | os.PathLike)
        self.labels = None if labels is None else _numbers(labels)
        if self.labels is not None and self.labels.shape != (len(self.x),):
            raise EmbeddingError(f"{len(self.x)} embeddings, but labels of shape {tuple(self.labels.shape)}")

    def loader(self) -> DataLoader[Any]:
        """All rows."""
        dataset = _Rows(self.x, self.labels)
        return DataLoader(
            dataset,
            sampler=self.sampler(dataset),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
        )


def _numbers(labels: Tensor | np.ndarray) -> Tensor:
    """Classes as int64; names by their order."""
    if not isinstance(labels, Tensor):
        labels = np.asarray(labels)
        if not np.issubdtype(labels.dtype, np.number):
            labels = np.unique(labels, return_inverse=True)[1]
    try:
        return as_labels(labels)
    except ValueError as error:
        raise EmbeddingError(str(error)) from error


class _Rows(Dataset[Any]):
    """Fetches a whole batch at once: row by row, collating would take longer than all the rest."""

    def __init__(self, x: Tensor, labels: Tensor | None) -> None:
        self.x, self.labels = x, labels

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        index = torch.tensor(rows)
        batch = {"embedding": self.x[index], "index": index}
        return batch if self.labels is None else {**batch, "label": self.labels[index]}


def _as_it_is(batch: Any) -> Any:
    return batch
