"""Predictions to disk as they come: `Trainer(callbacks=[PredictionWriter("predictions.parquet")])`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from cae.callbacks.ranks import on_rank_zero
from cae.files import replacing
from cae.module import CAE

GROUP_BYTES = 32 << 20
"""Predictions that are held before they are written as one row group."""

GROUP_BATCHES = 1 << 14
"""Batches after which they are written at any rate: a table of one row takes 9 KB for its 44 bytes."""


class PredictionWriter(BasePredictionWriter):
    """Streams what `predict_step` returns to one Parquet file, so that `return_predictions=False` works for any number.

    `predict_step` returns a tensor, which becomes the column `prediction`, or a dict of columns: tensors (B,) or (B, m)
    and lists of B strings or numbers. The column `index` is the sample's position in the data set: the prediction's own
    `index` if it has one, else what Lightning knows of the sampler; data sets without positions have no such column.
    With several loaders, `dataloader` tells them apart.

    Each process writes a file of its own in a hidden folder beside the target; at the end rank 0 merges them, sorted
    by index, each index once. All processes must see the same file system. The target appears complete, or stays as it
    was if the run fails.

    Memory does not grow with the number of samples, beyond the list of indices that Lightning keeps, about 40 bytes a
    sample, with two exceptions: the rows of a shuffled loader are sorted all at once, and a fresh `CAE` knows its
    predictions only at the end, so they are held until then (`trainer.fit` it first to have them streamed).

    Args:
        path: the target.

    Raises:
        IsADirectoryError: the target is a folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__("batch")
        self.path = Path(path)
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path} is a folder; give the name of a file, such as predictions.parquet")
        self._folder = self.path.parent / f".{self.path.name}.parts"
        self._part: Part | None = None
        self._stale: Sequence[int] | None = None
        self._held: list[tuple[Any, list[int], str, int | None]] | None = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make room for the parts, which also finds out whether anything can be written there."""
        on_rank_zero(trainer, self._make_folder)
        self._part = Part(self._folder / f"rank-{trainer.global_rank:05d}.parquet")
        self._stale = trainer.predict_loop.current_batch_indices
        self._held = [] if isinstance(pl_module, CAE) and pl_module.fitted is None else None

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch's predictions, or hold them if they are not known yet.

        Raises:
            ValueError: they are no columns of equal length; the message names the batch and the column.
        """
        assert self._part is not None  # since the start
        where = f"prediction of batch {batch_idx}"
        loader = dataloader_idx if len(trainer.num_predict_batches) > 1 else None
        # For a loader without indices Lightning hands out those of the last batch that had some.
        indices = [] if batch_indices is None or batch_indices is self._stale else list(batch_indices)
        self._stale = batch_indices
        rows = (prediction, indices, where, loader)
        if self._held is None:
            self._part.write(to_table(*rows), where)
        else:
            self._held.append(rows)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Merge the parts into the target.

        Raises:
            ValueError: there were no predictions.
        """
        assert self._part is not None  # since the start
        for rows in self._held or ():
            self._part.write(to_table(*rows), rows[2])
        self._held = None
        self._part.close()
        trainer.strategy.barrier("predictions written")
        on_rank_zero(trainer, self._merge)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave nothing behind."""
        if self._part is not None:
            self._part.close()
            shutil.rmtree(self._folder, ignore_errors=True)
        self._part, self._held = None, None

    def _make_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def _merge(self) -> None:
        parts = sorted(self._folder.glob("rank-*.parquet"))
        if not parts:
            raise ValueError(f"there are no predictions to write to {self.path}")
        with replacing(self.path) as target:
            merge(parts, target)
        shutil.rmtree(self._folder)


class Part:
    """One process's Parquet file, opened with the first rows.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: pq.ParquetWriter | None = None
        self._held: list[pa.Table] = []
        self._held_bytes = 0

    def write(self, table: pa.Table, where: str) -> None:
        """Append rows.

        Raises:
            ValueError: other columns than before; the message begins with `where`.
        """
        if table.num_rows == 0:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, table.schema)
        if table.schema != self._writer.schema:
            raise ValueError(
                f"{where} has columns {columns_of(table.schema)}; before {columns_of(self._writer.schema)}"
            )
        self._held.append(table)
        self._held_bytes += table.nbytes
        if self._held_bytes >= GROUP_BYTES or len(self._held) >= GROUP_BATCHES:
            self._flush()

    def close(self) -> None:
        """Write what is held and finish the file."""
        if self._writer is not None:
            self._flush()
            self._writer.close()
            self._writer = None

    def _flush(self) -> None:
        if self._held and self._writer is not None:
            self._writer.write_table(pa.concat_tables(self._held).combine_chunks())
        self._held, self._held_bytes = [], 0


def to_table(prediction: Any, indices: list[int], where: str, dataloader: int | None) -> pa.Table:
    """What `predict_step` returned for B samples as a table of B rows.

    Args:
        prediction: a tensor, or a dict of tensors (B,) or (B, m) and lists of length B.
        indices: positions of the samples in the data set, empty if unknown.
        where: begins error messages.
        dataloader: index of the loader, None if there is one.

    Raises:
        ValueError: something else, or columns of different length.
    """
    columns = prediction if isinstance(prediction, Mapping) else {"prediction": prediction}
    arrays = {name: to_array(values, f"{where}: {name!r}") for name, values in columns.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{where} must have as many rows in each column, got {lengths or 'no columns'}")
    n_rows = next(iter(lengths.values()))
    if "index" not in arrays and indices:
        if len(indices) != n_rows:
            raise ValueError(
                f"{where} has {n_rows} rows for {len(indices)} samples; return also which samples they are, as 'index'"
            )
        arrays["index"] = pa.array(indices, pa.int64())
    if dataloader is not None:
        arrays["dataloader"] = pa.array([dataloader] * n_rows, pa.int64())
    return pa.table(arrays)


def to_array(values: Any, where: str) -> pa.Array:
    """One column.

    Raises:
        ValueError: neither a tensor (B,) or (B, m) nor a list; the message begins with `where`.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return pa.array(values)
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    if isinstance(values, list | tuple):
        return pa.array(values)
    shape = f" of shape {values.shape}" if isinstance(values, np.ndarray) else ""
    raise ValueError(f"{where} must be a tensor (B,) or (B, m), or a list, got {type(values).__name__}{shape}")


def columns_of(schema: pa.Schema) -> str:
    """A schema in an error message."""
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def merge(parts: Sequence[Path], target: Path) -> None:
    """Put the parts together; if they know the samples' index, sorted by it and each index once.

    Ranks deal samples in turns, so their row groups cover the same ranges of indices one after the other. Range by
    range, only the row groups that reach into it are read.

    Args:
        parts: Parquet files of one schema.
        target: the file to write.
    """
    data = pads.dataset([os.fspath(part) for part in parts])
    names = data.schema.names
    with pq.ParquetWriter(target, data.schema) as writer:
        if "index" not in names:
            for batch in data.to_batches():
                writer.write_batch(batch)
            return
        index, bounds = pads.field("index"), index_bounds(parts)
        loaders = [pc.scalar(True)]
        if "dataloader" in names:
            found = data.to_table(columns=["dataloader"])["dataloader"].unique().to_pylist()
            loaders = [pads.field("dataloader") == loader for loader in sorted(found)]
        for of_loader in loaders:
            for low, high in pairwise([*bounds, None]):
                of_range = index >= low if high is None else (index >= low) & (index < high)
                table = data.to_table(filter=of_range & of_loader).combine_chunks()
                if table.num_rows:
                    writer.write_table(table.take(np.unique(table["index"].to_numpy(), return_index=True)[1]))


def index_bounds(parts: Sequence[Path]) -> list[int]:
    """Where ranges of the index begin, of about a row group of each part, from the files' own statistics."""
    least = set()
    for part in parts:
        metadata = pq.ParquetFile(part).metadata
        column = metadata.schema.names.index("index")
        for group in range(metadata.num_row_groups):
            least.add(metadata.row_group(group).column(column).statistics.min)
    return sorted(least)[:: len(parts)]
