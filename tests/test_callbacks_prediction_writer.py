"""`PredictionWriter`: everything predicted is in one file, in order, once, whole or not at all."""

import warnings

import lightning.pytorch as pl
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from cae import CAE, ImageFolderData
from cae.callbacks import PredictionWriter, prediction_writer
from cae.callbacks.prediction_writer import merge, to_table


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
        # A hint about speed, which a test on a few samples does not need.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
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


@pytest.mark.parametrize("limit", ["GROUP_BYTES", "GROUP_BATCHES"])
def test_row_groups_come_as_predictions_do(path, monkeypatch, limit):
    monkeypatch.setattr(prediction_writer, limit, 1)
    held = []
    write = prediction_writer.Part.write

    def watched(self, table, where):
        write(self, table, where)
        held.append(len(self._held))

    monkeypatch.setattr(prediction_writer.Part, "write", watched)
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
    predict(PredictionWriter(path), module, data)
    assert pq.read_table(path).equals(fresh)


@pytest.mark.parametrize(
    ("predict_step", "message"),
    [
        (lambda batch: {"a": batch, "b": batch[:1]}, r"batch 0 must have as many rows in each column, got \{'a': 4"),
        (lambda batch: {"a": batch[:1]}, r"batch 0 has 1 rows for 4 samples; return also which samples"),
        (lambda batch: {"loss": batch.sum()}, r"batch 0: 'loss' must be a tensor \(B,\) or \(B, m\).*shape \(\)"),
        (lambda batch: {"map": batch.reshape(-1, 1, 1)}, r"'map' must be a tensor .*shape \(\d, 1, 1\)"),
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


def test_merging_sorts_and_drops_what_the_sampler_repeated(tmp_path):
    # Three ranks as DistributedSampler deals 100 samples to them: 102, the first two twice.
    parts, indices = [], torch.cat([torch.arange(100), torch.arange(2)])
    for rank in range(3):
        own = indices[rank::3].tolist()
        table = to_table({"value": torch.tensor(own) * 10}, own, "", None)
        parts.append(tmp_path / f"{rank}.parquet")
        pq.write_table(table, parts[-1], row_group_size=5)
    merge(parts, tmp_path / "merged.parquet")
    merged = pq.read_table(tmp_path / "merged.parquet")
    assert merged["index"].to_pylist() == list(range(100))
    assert merged["value"].to_pylist() == list(range(0, 1000, 10))
    assert pq.ParquetFile(tmp_path / "merged.parquet").num_row_groups > 3
