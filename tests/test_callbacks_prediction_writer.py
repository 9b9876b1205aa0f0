"""`PredictionWriter`: everything predicted is in one file, in order, once, whole or not at all."""

import errno
import os
import warnings
from collections import namedtuple

import lightning.pytorch as pl
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from cae import CAE, ImageFolderData
from cae.callbacks import PredictionWriter, prediction_writer
from cae.callbacks.columns import to_table


class Model(pl.LightningModule):
    """Somebody's model; the samples are their own numbers."""

    def __init__(self, predict=lambda batch: {"double": 2 * batch, "pair": torch.stack([batch, -batch], dim=1)}):
        super().__init__()
        self.predict = predict

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self.predict(batch)


def trainer(writer, **options):
    return pl.Trainer(
        accelerator="cpu",
        callbacks=[writer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        **options,
    )


def predict(writer, module=None, data=None, return_predictions=False, runner=None, **options):
    runner = runner or trainer(writer, **options)
    loaders = data if data is not None else DataLoader(torch.arange(10.0), batch_size=4)
    with warnings.catch_warnings():
        # Hints that these tests do not need.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="predict returned None if it was on purpose")
        warnings.filterwarnings("ignore", message="You are using a custom batch sampler `Odd` for prediction")
        return runner.predict(module or Model(), loaders, return_predictions=return_predictions)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "predictions.parquet"


def test_every_prediction_is_written_with_its_index(path):
    assert predict(PredictionWriter(path)) is None
    table = pq.read_table(path)
    assert table["index"].to_pylist() == list(range(10))
    assert table["double"].to_pylist() == [2.0 * i for i in range(10)]
    assert table["pair"].to_pylist() == [[i, -i] for i in range(10)]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["predictions.csv", "predictions.JSON", "predictions.pt"])
def test_a_file_called_like_another_format_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name} would be a Parquet file: call it predictions\.parquet"):
        PredictionWriter(tmp_path / name)


@pytest.mark.parametrize("limit", ["GROUP_BYTES", "GROUP_BATCHES"])
def test_row_groups_come_as_predictions_do(path, monkeypatch, limit):
    monkeypatch.setattr(prediction_writer, limit, 1)
    held = []
    write = prediction_writer.ParquetShard.write

    def watched(self, table, where):
        write(self, table, where)
        held.append(len(self._held))

    monkeypatch.setattr(prediction_writer.ParquetShard, "write", watched)
    predict(PredictionWriter(path))
    assert held == [0, 0, 0]
    assert pq.read_table(path)["index"].to_pylist() == list(range(10))


def test_a_tensor_is_the_column_prediction(path):
    predict(PredictionWriter(path), Model(lambda batch: batch.bfloat16()))
    assert pq.read_table(path)["prediction"].to_pylist() == [float(i) for i in range(10)]


def test_lists_are_columns_too(path):
    predict(PredictionWriter(path), Model(lambda batch: {"text": [f"é{i:.0f}" for i in batch.tolist()]}))
    assert pq.read_table(path)["text"].to_pylist() == [f"é{i}" for i in range(10)]


def test_a_shuffled_loader_is_put_in_order(path, monkeypatch):
    monkeypatch.setattr(prediction_writer, "GROUP_BYTES", 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Your `predict_dataloader`'s sampler has shuffling enabled")
        predict(PredictionWriter(path), data=DataLoader(torch.arange(50.0), batch_size=4, shuffle=True))
    table = pq.read_table(path)
    assert table["index"].to_pylist() == list(range(50))
    assert table["double"].to_pylist() == [2.0 * i for i in range(50)]


def test_several_loaders_are_told_apart(path):
    predict(PredictionWriter(path), data=[DataLoader(torch.arange(3.0)), DataLoader(torch.arange(5.0))])
    table = pq.read_table(path)
    assert table["dataloader"].to_pylist() == 3 * [0] + 5 * [1]
    assert table["index"].to_pylist() == [*range(3), *range(5)]


Pair = namedtuple("Pair", ["logit", "embedding"])


def numbers(batch):
    return [int(i) for i in batch]


# What `predict_step` returns for samples 0.0, 1.0, …, in batches of four, and what is then in the row of sample i.
FORMS = {
    "images": (lambda b: b.view(-1, 1, 1, 1).expand(-1, 2, 3, 2), lambda i: {"prediction": [[[i] * 2] * 3] * 2}),
    "tokens": (lambda b: b.view(-1, 1, 1).expand(-1, 2, 3), lambda i: {"prediction": [[i] * 3] * 2}),
    "padded to the batch": (
        lambda b: b.view(-1, 1, 1).expand(-1, len(b), 1),
        lambda i: {"prediction": [[i]] * (4 if i < 8 else 2)},
    ),
    "half precision": (lambda b: {"a": b.half(), "b": b.bfloat16().view(-1, 1)}, lambda i: {"a": i, "b": [i]}),
    "a tuple": (lambda b: (b, b.view(-1, 1)), lambda i: {"prediction_0": i, "prediction_1": [i]}),
    "a named tuple": (lambda b: Pair(b, b.view(-1, 1)), lambda i: {"logit": i, "embedding": [i]}),
    "nested": (
        lambda b: {"head": {"score": b, "out": Pair(b > 4, b.view(-1, 1))}},
        lambda i: {"head": {"score": i, "out": {"logit": i > 4, "embedding": [i]}}},
    ),
    "detections": (
        lambda b: [{"box": torch.full((i % 3, 4), i), "label": torch.arange(i % 3)} for i in numbers(b)],
        lambda i: {"box": [[i] * 4] * (i % 3), "label": list(range(i % 3))},
    ),
    "nothing detected at first": (
        lambda b: {"box": [torch.full((i if i > 3 else 0, 2), i) for i in numbers(b)]},
        lambda i: {"box": [[i] * 2] * i if i > 3 else []},
    ),
    "a list of tensors": (lambda b: list(b.view(-1, 1).expand(-1, 3)), lambda i: {"prediction": [i] * 3}),
    "a list of dicts in a column": (
        lambda b: {"word": [{"text": f"w{i}", "at": i} for i in numbers(b)]},
        lambda i: {"word": {"text": f"w{i}", "at": i}},
    ),
    "no words, then words": (
        lambda b: {"a": b, "text": None if b[0] == 0 else [f"w{i}" for i in numbers(b)]},
        lambda i: {"a": i, "text": f"w{i}" if i > 3 else None},
    ),
    "some without words": (
        lambda b: {"text": [f"w{i}" if i % 2 else None for i in numbers(b)]},
        lambda i: {"text": f"w{i}" if i % 2 else None},
    ),
    "whole numbers, then fractions": (
        lambda b: {"a": numbers(b) if b[0] == 0 else [i + 0.5 for i in numbers(b)]},
        lambda i: {"a": i if i < 4 else i + 0.5},
    ),
    "fractions, then whole numbers": (lambda b: {"a": b if b[0] == 0 else b.int()}, lambda i: {"a": i}),
    "keys that are no strings": (lambda b: {7: b}, lambda i: {"7": i}),
}


def as_lists(value):
    """Plain Python values, whatever a reader makes lists of."""
    if isinstance(value, dict):
        return {key: as_lists(part) for key, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [as_lists(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def by_pandas(path, folder):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(path)
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def by_polars(path, folder):
    return [as_rows(row) for row in pytest.importorskip("polars").read_parquet(path).to_dicts()]


def as_rows(row):
    return {key: value.to_list() if hasattr(value, "to_list") else value for key, value in row.items()}


def by_datasets(path, folder):
    return list(pytest.importorskip("datasets").Dataset.from_parquet(str(path), cache_dir=str(folder / "cache")))


def by_duckdb(path, folder):
    found = pytest.importorskip("duckdb").sql(f"SELECT * FROM read_parquet('{path}')")
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


READERS = {
    "pyarrow": lambda path, folder: pq.read_table(path).to_pylist(),
    "pandas": by_pandas,
    "polars": by_polars,
    "datasets": by_datasets,
    "duckdb": by_duckdb,
}


@pytest.mark.parametrize("group_bytes", [1, 2**25])
@pytest.mark.parametrize("form", FORMS)
def test_what_has_a_form_in_parquet_is_read_back_as_it_was(path, tmp_path, monkeypatch, form, group_bytes):
    """Whether the types are settled before the first row group is on the disk or after it."""
    monkeypatch.setattr(prediction_writer, "GROUP_BYTES", group_bytes)
    predict_step, row = FORMS[form]
    predict(PredictionWriter(path), Model(predict_step))
    expected = [{**row(i), "index": i} for i in range(10)]
    readers = READERS if group_bytes > 1 else {"pyarrow": READERS["pyarrow"]}
    for name, read in readers.items():
        assert as_lists(read(path, tmp_path)) == expected, name


def test_batches_without_predictions_are_left_out(path):
    predict(PredictionWriter(path), Model(lambda batch: None if batch[0] == 4 else batch))
    assert pq.read_table(path)["index"].to_pylist() == [0, 1, 2, 3, 8, 9]
    with pytest.raises(ValueError, match="no predictions to write"):
        predict(PredictionWriter(path), Model(lambda batch: None))


class Odd:
    """Somebody's batch sampler, which does not know its length."""

    def __iter__(self):
        return iter([[0, 5], [3, 1, 2], [4]])


LOADERS = {
    "stream": (lambda: DataLoader(Stream(), batch_size=4), [*range(10)], None, None),
    "stream, then data set": (
        lambda: [DataLoader(Stream(), batch_size=4), DataLoader(torch.arange(3.0), batch_size=2)],
        [*range(10), *range(3)],
        [None] * 10 + [0, 1, 2],
        [0] * 10 + [1] * 3,
    ),
    "data set, then stream": (
        lambda: CombinedLoader([DataLoader(torch.arange(3.0), batch_size=2), DataLoader(Stream())], "sequential"),
        [*range(3), *range(10)],
        [0, 1, 2] + [None] * 10,
        [0] * 3 + [1] * 10,
    ),
    "batch sampler": (lambda: DataLoader(torch.arange(6.0), batch_sampler=Odd()), [*range(6)], [*range(6)], None),
    # A list would be several loaders to Lightning.
    "no DataLoader": (lambda: (torch.arange(2.0) + i for i in (0, 2)), [0, 1, 2, 3], None, None),
}


@pytest.mark.parametrize("group_bytes", [1, 2**25])
@pytest.mark.parametrize("kind", LOADERS)
def test_any_loader_will_do(path, monkeypatch, kind, group_bytes):
    monkeypatch.setattr(prediction_writer, "GROUP_BYTES", group_bytes)
    make, values, index, loader = LOADERS[kind]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
        predict(PredictionWriter(path), Model(lambda batch: {"value": batch}), make())
    table = pq.read_table(path)
    assert table["value"].to_pylist() == values
    assert (table["index"].to_pylist() if "index" in table.column_names else None) == index
    assert (table["dataloader"].to_pylist() if "dataloader" in table.column_names else None) == loader


def test_nothing_to_predict_is_said(path):
    predict(PredictionWriter(path))
    before = path.read_bytes()
    with pytest.warns(RuntimeWarning, match=r"no batches to predict, so .*predictions\.parquet was not written"):
        predict(PredictionWriter(path), limit_predict_batches=0)
    assert path.read_bytes() == before


def test_no_row_is_lost_to_an_index_that_repeats(path, monkeypatch):
    """Somebody's `index` is the position in the batch, or each sample has several rows."""
    monkeypatch.setattr(prediction_writer, "GROUP_BYTES", 1)
    with pytest.warns(RuntimeWarning, match=r"6 rows of .*'index' that another row said before; all are written"):
        predict(PredictionWriter(path), Model(lambda batch: {"value": batch, "index": torch.arange(len(batch))}))
    table = pq.read_table(path)
    assert table["index"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert table["value"].to_pylist() == [0, 4, 8, 1, 5, 9, 2, 6, 3, 7]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(10.0))


def test_a_stream_is_written_in_the_order_it_comes(path):
    with pytest.warns(UserWarning, match="Couldn't infer the batch indices"):
        predict(PredictionWriter(path), data=DataLoader(Stream(), batch_size=4))
    table = pq.read_table(path)
    assert table.column_names == ["double", "pair"]
    assert table["double"].to_pylist() == [2.0 * i for i in range(10)]


def test_a_stream_does_not_take_the_indices_of_the_run_before(path):
    writer = PredictionWriter(path)
    runner = trainer(writer)
    predict(writer, runner=runner)
    with pytest.warns(UserWarning, match="Couldn't infer the batch indices"):
        predict(writer, data=DataLoader(Stream(), batch_size=2), runner=runner)
    assert pq.read_table(path)["double"].to_pylist() == [2.0 * i for i in range(10)]


def test_limits_and_fast_dev_run_write_what_was_predicted(path):
    predict(PredictionWriter(path), limit_predict_batches=2)
    assert pq.read_table(path).num_rows == 8
    predict(PredictionWriter(path), fast_dev_run=True)
    assert pq.read_table(path).num_rows == 4


@pytest.mark.parametrize("return_predictions", [True, False])
def test_a_fresh_cae_is_fitted_first(path, fake_encoder, picture_folder, text_files, return_predictions):
    (picture_folder / "blue" / "0.png").write_bytes(b"no picture")
    module = CAE(3, encoder=fake_encoder, n_init=3, **text_files)
    data = ImageFolderData(picture_folder, batch_size=4, num_workers=0)
    predict(PredictionWriter(path), module, data, return_predictions)
    fresh = pq.read_table(path)
    assert fresh["index"].to_pylist() == list(range(1, 30))  # the broken picture is the first
    assert set(fresh["cluster"].to_pylist()) == {0, 1, 2}
    assert {"cluster", "confidence", "runner_up", "similarity", "beta", "index"} <= set(fresh.column_names)
    assert fresh["path"].to_pylist()[0] == "blue/1.png"
    names = [cluster.name for cluster in module.fitted.clusters]
    assert fresh["name"].to_pylist() == [names[k] for k in fresh["cluster"].to_pylist()]
    predict(PredictionWriter(path), module, data)
    assert pq.read_table(path).equals(fresh)


@pytest.mark.parametrize(
    ("predict_step", "message"),
    [
        (lambda batch: {"a": batch, "b": batch[:1]}, r"batch 0 must have as many rows in each column, got \{'a': 4"),
        (lambda batch: {"a": batch[:1]}, r"batch 0 has 1 rows for 4 samples; return also which samples"),
        (lambda batch: {"loss": batch.sum()}, r"batch 0: 'loss' must be a tensor \(B, …\).*shape \(\).*torch.full"),
        (lambda batch: {"a": {"b": batch.sum()}}, r"batch 0: 'a': 'b' must be a tensor .*shape \(\)"),
        (lambda batch: {"z": batch * 1j}, r"batch 0: 'z' must hold numbers .*complex64.*real and imaginary parts"),
        (lambda batch: {"a": [1, "b", 2, 3]}, r"batch 0: 'a' is a list of int, str, which no .*values of one type"),
        (lambda batch: {"a": [batch, "b", batch, batch]}, r"batch 0: 'a' mixes Tensor, str"),
        (
            lambda batch: {"a": [torch.zeros(1, 2), torch.zeros(1, 3), torch.zeros(1, 2), torch.zeros(0, 2)]},
            r"batch 0: 'a' is a list of tensors of shapes \(0, 2\), \(1, 2\), \(1, 3\); .*pad them",
        ),
        (
            lambda batch: {"a": ["x" if batch[0] else 1 for _ in batch]},
            r"batch 1 has columns a \(string\).*before a \(int64\).*each of one type",
        ),
        (lambda batch: 3.0, r"batch 0: 'prediction' must be a tensor .*got float"),
        (lambda batch: {}, "got no columns"),
        (lambda batch: {"a" if batch[0] == 0 else "b": batch}, r"batch 1 has columns b \(float\).*before a \(float\)"),
    ],
)
def test_what_is_no_column_is_named(path, predict_step, message):
    with pytest.raises(ValueError, match=message):
        predict(PredictionWriter(path), Model(predict_step))


def test_a_failed_run_leaves_the_old_file_and_nothing_else(path):
    predict(PredictionWriter(path))
    before = path.read_bytes()

    def fail(batch):
        if batch[0] > 0:
            raise OSError("broken")
        return batch

    with pytest.raises(OSError, match="broken"):
        predict(PredictionWriter(path), Model(fail))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_full_disk_is_told_and_no_parts_stay_on_it(path, monkeypatch):
    def write_table(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", write_table)
    monkeypatch.setattr(prediction_writer, "GROUP_BATCHES", 1)
    with pytest.raises(OSError, match="No space left") as told:
        predict(PredictionWriter(path))
    assert told.value.__context__ is None
    assert list(path.parent.iterdir()) == []


def test_parts_of_a_killed_run_are_not_taken_in(path):
    stale = path.parent / f".{path.name}.parts" / "rank-00007.parquet"
    stale.parent.mkdir(parents=True)
    pq.write_table(to_table(torch.zeros(3), [90, 91, 92], "", None), stale)
    predict(PredictionWriter(path))
    assert pq.read_table(path)["index"].to_pylist() == list(range(10))


def test_nothing_to_write_is_an_error(path):
    with pytest.raises(ValueError, match=r"no predictions to write to .*predictions\.parquet"):
        predict(PredictionWriter(path), Model(lambda batch: {"a": batch[:0], "index": batch[:0].long()}))


def test_a_folder_is_no_target(tmp_path):
    with pytest.raises(IsADirectoryError, match="give the name of a file"):
        PredictionWriter(tmp_path)


def test_an_index_may_be_a_string(path):
    predict(
        PredictionWriter(path),
        Model(lambda batch: {"value": batch, "index": [f"id-{9 - i}" for i in numbers(batch)]}),
    )
    table = pq.read_table(path)
    assert table["index"].to_pylist() == [f"id-{i}" for i in range(10)]
    assert table["value"].to_pylist() == list(range(9, -1, -1))
