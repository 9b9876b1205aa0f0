"""`import pytorch_lightning`: the other name of the same package, with classes of its own."""

import warnings

import pyarrow.parquet as pq
import pytest
import torch
from conftest import FakeEncoder
from torch.utils.data import DataLoader, TensorDataset

from cae import CAE
from cae.callbacks import ClusteringCallback, PredictionWriter

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pl = pytest.importorskip("pytorch_lightning")
    from pytorch_lightning.loggers import TensorBoardLogger

DATA = DataLoader(TensorDataset(torch.randn(60, 8), torch.arange(60) % 3), batch_size=20)


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(8, 4)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        return {"embedding": self.net(batch[0]), "label": batch[1]}

    def predict_step(self, batch, batch_idx):
        return {"z": self.net(batch[0])}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(**{"accelerator": "cpu", "logger": False, "max_epochs": 1, **quiet, **options})


@pytest.fixture(autouse=True)
def few_samples():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
        warnings.filterwarnings("ignore", message=".*(LeafSpec|isinstance.treespec).*")
        yield


def test_the_writer_knows_the_indices(tmp_path):
    path = tmp_path / "predictions.parquet"
    trainer(callbacks=[PredictionWriter(path)]).predict(Model(), DATA, return_predictions=False)
    assert pq.read_table(path)["index"].to_pylist() == list(range(60))


def test_the_callback_logs_scores_and_draws(tmp_path, monkeypatch):
    drawn = []
    logger = TensorBoardLogger(tmp_path)
    monkeypatch.setattr(type(logger.experiment), "add_embedding", lambda *_, **options: drawn.append(options["tag"]))
    callback = ClusteringCallback(3, embedding="embedding", label="label", details=True)
    run = trainer(callbacks=[callback], logger=logger)
    run.fit(Model(), DATA, DATA)
    assert 0 < float(run.callback_metrics["cluster_acc"]) <= 1
    assert drawn == ["cluster_embedding"]


def test_a_cae_says_which_trainer_runs_it(text_files):
    with pytest.warns(UserWarning, match="CAE is a module of the package `lightning`.*from lightning import Trainer"):
        CAE(3, encoder=FakeEncoder(), **text_files)
