"""Writes predictions to disk during prediction: `Trainer(callbacks=[PredictionWriter("predictions.parquet")])`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_warn

from cae.callbacks.columns import to_table
from cae.callbacks.ranks import on_rank_zero
from cae.models.cae import CAE
from cae.utils.files import replacing

GROUP_BYTES = 32 << 20
"""Predictions that are held before they are written as one row group."""

_OTHER_FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".npy", ".npz", ".pt", ".pkl", ".safetensors")

GROUP_BATCHES = 1 << 14
"""Batches after which rows are written in any case: many small tables in memory have 9 KB of overhead each."""


class PredictionWriter(BasePredictionWriter):
    """Streams what `predict_step` returns to one Parquet file, so that `return_predictions=False` works for any number.

    `predict_step` returns a column, which is called `prediction`; columns in a dict, named tuple or tuple
    (`prediction_0`, …); a list of B dicts; or None for a batch without predictions. A column is a tensor (B, …),
    written as lists of fixed size; a list of B strings, numbers, lists, dicts or tensors, which may differ in length as
    detections do; a dict or named tuple of columns; or None. What a later batch brings may widen a column's type: from
    nothing to strings, whole numbers to fractions, lists of one size to lists of any.

    The column `index` is the sample's position in the data set: the prediction's own `index` if it has one, else what
    Lightning knows of the sampler. Data sets without positions have no such column, or none in it if another loader
    has some. With several loaders, `dataloader` tells them apart. The predictions of a `CAE` also get `name`, what the
    cluster is called, and `path`, if batches know their files.

    Each process writes files of its own in a hidden folder beside the target; at the end rank 0 merges them, sorted by
    index. What a sampler dealt to two processes is written once; rows of one process that say the same `index` are all
    written, with a warning. All processes must see the same file system. The target appears complete, or stays as it
    was if the run fails.

    Memory does not grow with the number of samples, beyond the list of indices that Lightning keeps, about 40 bytes a
    sample, with two exceptions: the rows of a shuffled loader are sorted all at once, and a fresh `CAE` knows its
    predictions only at the end, so they are held until then (`trainer.fit` it first to have them streamed).

    Args:
        path: the target.

    Raises:
        ValueError: the target is called like a file of another format.
        IsADirectoryError: the target is a folder.

    Examples:
        >>> import pyarrow.parquet as pq
        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> class Model(pl.LightningModule):
        ...     def predict_step(self, batch, batch_idx):
        ...         return {"score": batch.sum(dim=1)}
        >>> writer = PredictionWriter("predictions.parquet")
        >>> trainer = pl.Trainer(accelerator="cpu", callbacks=[writer], logger=False, enable_progress_bar=False)
        >>> trainer.predict(Model(), DataLoader(torch.ones(5, 2), batch_size=2), return_predictions=False)
        >>> pq.read_table("predictions.parquet").to_pydict()
        {'score': [2.0, 2.0, 2.0, 2.0, 2.0], 'index': [0, 1, 2, 3, 4]}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__("batch")
        self.path = Path(path)
        if self.path.suffix.lower() in _OTHER_FORMATS:
            raise ValueError(f"{path} would be a Parquet file: call it {self.path.with_suffix('.parquet').name}")
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path} is a folder; give the name of a file, such as predictions.parquet")
        self._folder = self.path.parent / f".{self.path.name}.parts"
        self._part: ParquetShard | None = None
        self._stale: Sequence[int] | None = None
        self._held: list[tuple[Any, list[int], str, int | None]] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Have a Trainer of `pytorch_lightning` keep the indices of batches: it does so for writers of its own kind."""
        if stage == "predict" and not isinstance(trainer, pl.Trainer):
            package = import_module(f"{type(trainer).__module__.partition('.')[0]}.callbacks")
            write = {"write_on_batch_end": lambda *_: None}
            trainer.callbacks.append(type("IndexKeeper", (package.BasePredictionWriter,), write)("batch"))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the folder of the parts, which also checks that it can be written."""
        on_rank_zero(trainer, self._make_folder)
        self._part = ParquetShard(self._folder / f"rank-{trainer.global_rank:05d}.00000.parquet")
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
        # For a loader without indices, Lightning passes those of the last batch that had some.
        indices = [] if batch_indices is None or batch_indices is self._stale else list(batch_indices)
        self._stale = batch_indices
        if prediction is None:
            return
        where = f"prediction of batch {batch_idx}"
        loader = dataloader_idx if len(trainer.num_predict_batches) > 1 else None
        if isinstance(pl_module, CAE) and isinstance(batch, Mapping) and "path" in batch:
            prediction = {"path": batch["path"], **prediction}
        rows = (prediction, indices, where, loader)
        if self._held is None:
            self._write(pl_module, *rows)
        else:
            self._held.append(rows)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Merge the parts into the target.

        Raises:
            ValueError: there were no predictions.
        """
        assert self._part is not None  # since the start
        for rows in self._held or ():
            self._write(pl_module, *rows)
        self._held = None
        self._part.close()
        trainer.strategy.barrier("predictions written")
        on_rank_zero(trainer, self._merge)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the parts."""
        if self._part is not None:
            self._part.abandon()
            shutil.rmtree(self._folder, ignore_errors=True)
        self._part, self._held = None, None

    def _make_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def _write(
        self, pl_module: pl.LightningModule, prediction: Any, indices: list[int], where: str, loader: int | None
    ) -> None:
        assert self._part is not None  # since the start
        if isinstance(pl_module, CAE) and pl_module.fitted is not None:
            names = [cluster.name for cluster in pl_module.fitted.clusters]
            prediction = {**prediction, "name": [names[k] for k in prediction["cluster"].tolist()]}
        self._part.write(to_table(prediction, indices, where, loader), where)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Warn if there was no batch to predict: Lightning then skips all hooks between setup and this one."""
        if stage == "predict" and self._part is None and not trainer.interrupted:
            rank_zero_warn(f"there were no batches to predict, so {self.path} was not written", category=RuntimeWarning)
        self._part = None

    def _merge(self) -> None:
        parts = sorted(self._folder.glob("rank-*.parquet"))
        if not parts:
            raise ValueError(f"there are no predictions to write to {self.path}")
        with replacing(self.path) as target:
            merge(parts, target)
        shutil.rmtree(self._folder)


class ParquetShard:
    """One process's rows in Parquet files, a new one whenever a column's type widens.

    Args:
        path: path of the first file, `rank-00000.00000.parquet`; the next is `rank-00000.00001.parquet`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._schema: pa.Schema | None = None
        self._writer: pq.ParquetWriter | None = None
        self._files = 0
        self._held: list[pa.Table] = []
        self._held_bytes = 0

    def write(self, table: pa.Table, where: str) -> None:
        """Append rows.

        Raises:
            ValueError: other columns than before, or other types that none holds all values of; the message begins with
                `where`.
        """
        if table.num_rows == 0:
            return
        if self._schema is None:
            self._schema = table.schema
        if table.schema != self._schema:
            self._schema = widened(self._schema, table.schema, where)
        self._held.append(table)
        self._held_bytes += table.nbytes
        if self._held_bytes >= GROUP_BYTES or len(self._held) >= GROUP_BATCHES:
            self._flush()

    def close(self) -> None:
        """Write what is held and finish the file."""
        self._flush()
        self._close_writer()

    def abandon(self) -> None:
        """Let go of the file, without what is held: the disk may be full."""
        self._held = []
        with suppress(OSError):
            self._close_writer()

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _flush(self) -> None:
        if not self._held:
            return
        if self._writer is not None and self._writer.schema != self._schema:
            self._close_writer()
        if self._writer is None:
            path = self.path.with_suffix("").with_suffix(f".{self._files:05d}.parquet")
            self._writer, self._files = pq.ParquetWriter(path, self._schema), self._files + 1
        tables = [conform(table, self._schema) for table in self._held]
        self._writer.write_table(pa.concat_tables(tables).combine_chunks())
        self._held, self._held_bytes = [], 0


def widened(before: pa.Schema, schema: pa.Schema, where: str) -> pa.Schema:
    """The schema that holds the rows of both.

    Raises:
        ValueError: other columns, but for `index`, or types without a common one; the message begins with `where`.
    """
    if set(before.names) - {"index"} == set(schema.names) - {"index"}:
        try:
            return pa.unify_schemas([before, schema], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            pass  # raised below, with both schemas
    raise ValueError(
        f"{where} has columns {columns_of(schema)}; before {columns_of(before)}; return the same columns for every "
        "batch, each of one type"
    )


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table in a wider schema, in its order of columns; null where the table has no such column."""
    if table.schema == schema:
        return table
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def columns_of(schema: pa.Schema) -> str:
    """A schema in an error message."""
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def merge(parts: Sequence[Path], target: Path) -> None:
    """Merge the parts, sorted by the samples' index if they have it.

    Ranks deal samples in turns, so their row groups cover the same ranges of indices one after the other. Range by
    range, only the row groups that reach into it are read.

    Args:
        parts: Parquet files of the same columns, rank by rank; up to the first dot they are called after their rank.
        target: the file to write.

    Raises:
        ValueError: the processes have other columns, or types without a common one.
    """
    schema = pq.read_schema(parts[0])
    for part in parts[1:]:
        schema = widened(schema, pq.read_schema(part), f"the process of {part.name}")
    datasets = [pads.dataset(os.fspath(part)) for part in parts]
    ranks = np.unique([part.name.split(".")[0] for part in parts], return_inverse=True)[1]
    repeated = 0
    with pq.ParquetWriter(target, schema) as writer:
        if "index" not in schema.names:
            for data in datasets:
                for batch in data.to_batches():
                    writer.write_table(conform(pa.Table.from_batches([batch]), schema))
            return
        bounds = [*index_bounds(parts), None]
        for of_loader in loader_filters(datasets):
            for low, high in pairwise(bounds):
                tables = [
                    conform(data.to_table(filter=in_range(data.schema, low, high) & of_loader), schema)
                    for data in datasets
                ]
                table = pa.concat_tables(tables).combine_chunks()
                rank = np.repeat(ranks, [len(part) for part in tables])
                order, found = in_order(table["index"].to_numpy(), rank)
                repeated += found
                if len(order):
                    writer.write_table(table.take(order))
            for data in datasets:  # of loaders without positions
                nowhere = pads.field("index").is_null() if "index" in data.schema.names else pc.scalar(True)
                for batch in data.to_batches(filter=nowhere & of_loader):
                    if batch.num_rows:
                        writer.write_table(conform(pa.Table.from_batches([batch]), schema))
    if repeated:
        rank_zero_warn(
            f"{repeated} rows of {target} say an 'index' that another row said before; all are written. If the "
            "predictions' own 'index' is a position in the batch, leave it out",
            category=RuntimeWarning,
        )


def loader_filters(datasets: Sequence[pads.Dataset]) -> list[pc.Expression]:
    """Filters that choose the rows of each loader in turn."""
    if "dataloader" not in datasets[0].schema.names:
        return [pc.scalar(True)]
    found = {loader for data in datasets for loader in data.to_table(["dataloader"])["dataloader"].unique().to_pylist()}
    return [pads.field("dataloader") == loader for loader in sorted(found)]


def in_range(schema: pa.Schema, low: int | None, high: int | None) -> pc.Expression:
    """The filter of indices from `low` to below `high`."""
    if "index" not in schema.names:
        return pc.scalar(False)
    index = pads.field("index")
    return index >= low if high is None else (index >= low) & (index < high)


def in_order(index: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, int]:
    """Which rows to keep, by index: those that several ranks have, because a sampler evened them out, once.

    Args:
        index: (n,) of each row.
        rank: (n,) that it comes from, ascending.

    Returns:
        Positions of the rows kept, and how many of them say an index that their own rank has said before.
    """
    if (index[1:] > index[:-1]).all():
        return np.arange(len(index)), 0
    index = np.unique(index, return_inverse=True)[1]  # as numbers, where they are strings
    order = np.lexsort((rank, index))  # stable
    index, rank = index[order], rank[order]
    starts = np.flatnonzero(np.r_[True, (index[1:] != index[:-1]) | (rank[1:] != rank[:-1])])
    lengths = np.diff(np.r_[starts, len(index)])
    occurrence = np.arange(len(index)) - np.repeat(starts, lengths)
    again = occurrence > 0
    # Of the ranks that have an index for the n-th time, keep the first.
    by_occurrence = np.lexsort((occurrence, index))
    pairs = np.stack([index[by_occurrence], occurrence[by_occurrence]])
    kept = by_occurrence[np.r_[True, (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)]]
    return order[kept], int(again[kept].sum())


def index_bounds(parts: Sequence[Path]) -> list[int]:
    """Where ranges of the index begin, of about a row group of each part, from the files' own statistics."""
    least = set()
    for part in parts:
        metadata = pq.ParquetFile(part).metadata
        if "index" not in metadata.schema.names:
            continue
        column = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == "index")
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(column).statistics
            if statistics is not None and statistics.has_min_max:  # not all of them null
                least.add(statistics.min)
    return sorted(least)[:: len(parts)]
