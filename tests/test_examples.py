"""Three projects of other people that use cae, and the README's lines for such projects, as they are."""

import re
import warnings
from pathlib import Path

import datasets
import lightning.pytorch as pl
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from cae import CAE, CAEClusterer
from cae.callbacks import ClusteringCallback, PredictionWriter

ROOT = Path(__file__).parents[1]
CIFAR10 = ROOT / "../shared/data/cifar10_test"
CLASSES = 10


@pytest.fixture(autouse=True)
def few_samples():
    """Lightning's hints for larger data."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
        yield


def quiet_trainer(**options):
    return pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, **options)


def pictures(per_class):
    """CIFAR-10's where they are, else as many made here: (N, 3, 32, 32) float32 in [0, 1], (N,) int64."""
    if CIFAR10.is_dir():
        files = [sorted(folder.iterdir())[:per_class] for folder in sorted(CIFAR10.iterdir()) if folder.is_dir()]
        arrays = [np.asarray(Image.open(file).convert("RGB")) for folder in files for file in folder]
        images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 255
    else:
        generator = torch.Generator().manual_seed(0)
        colours = torch.rand(CLASSES, 3, 1, 1, generator=generator).repeat_interleave(per_class, 0)
        images = (colours + 0.1 * torch.randn(len(colours), 3, 32, 32, generator=generator)).clamp(0, 1)
    return images, torch.arange(CLASSES).repeat_interleave(per_class)


# (a) Fine-tuning a classifier, with checkpoints by how well its features cluster.


class FineTuned(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
        )
        self.head = nn.Linear(128, CLASSES)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return cross_entropy(self.head(self.features(images).flatten(1)), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        features = self.features(images).flatten(1)
        self.log("val_loss", cross_entropy(self.head(features), labels))
        return {"embedding": features, "label": labels}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def cifar10(per_class=100):
    images, labels = pictures(per_class)
    data = torch.utils.data.TensorDataset(images, labels)
    return DataLoader(data, batch_size=50, shuffle=True), DataLoader(data, batch_size=50)


def test_a_classifier_is_checkpointed_by_its_clusters(tmp_path):
    callback = ClusteringCallback(n_clusters=CLASSES, embedding="embedding", label="label", strict=True)
    checkpoint = ModelCheckpoint(tmp_path, "{epoch}-{cluster_acc:.3f}", monitor="cluster_acc", mode="max")
    run = quiet_trainer(max_epochs=2, callbacks=[callback, checkpoint])
    run.fit(FineTuned(), *cifar10())
    assert f"cluster_acc={float(checkpoint.best_model_score):.3f}" in checkpoint.best_model_path
    assert {"val_loss", "cluster_acc", "cluster_stability"} <= set(run.callback_metrics)
    assert run.callback_metrics["cluster_acc"] > 1 / CLASSES
    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    assert saved["callbacks"][callback.state_key]["clustering"]["scores"]["acc"] == pytest.approx(
        float(checkpoint.best_model_score)
    )


# (b) Clusters for a Hugging Face data set, to a file.


def test_a_hugging_face_data_set_is_clustered_into_a_file(tmp_path, picture_folder, fake_encoder, text_files):
    files = sorted(picture_folder.rglob("*.png"))
    made = datasets.Dataset.from_dict(
        {"image": [str(file) for file in files], "colour": [file.parent.name for file in files]}
    ).cast_column("image", datasets.Image())
    made.save_to_disk(tmp_path / "colours")
    pictures = datasets.load_from_disk(str(tmp_path / "colours"))

    pictures.set_transform(lambda rows: {"image": [fake_encoder.preprocess(image) for image in rows["image"]]})
    writer = PredictionWriter(tmp_path / "clusters.parquet")
    model = CAE(3, encoder=fake_encoder, n_init=3, **text_files)
    run = quiet_trainer(callbacks=[writer], enable_checkpointing=False)
    assert run.predict(model, DataLoader(pictures, batch_size=8), return_predictions=False) is None

    table = pq.read_table(tmp_path / "clusters.parquet")
    assert table["index"].to_pylist() == list(range(30))
    colours = datasets.load_from_disk(str(tmp_path / "colours"))["colour"]
    assert len(set(zip(table["cluster"].to_pylist(), colours, strict=True))) == 3  # a cluster a colour


# (c) A DataModule of one's own, whose batches are dicts.


class Records(Dataset):
    def __init__(self, n):
        self.images, self.labels = pictures(n)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"pixel_values": self.images[i], "target": {"species": int(self.labels[i])}, "name": f"record {i}"}


class OwnData(pl.LightningDataModule):
    def setup(self, stage):
        self.records = Records(6)

    def train_dataloader(self):
        return DataLoader(self.records, batch_size=16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.records, batch_size=16)

    predict_dataloader = val_dataloader


class OwnModel(FineTuned):
    def encode(self, batch):
        return self.features(batch["pixel_values"]).flatten(1)

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.head(self.encode(batch)), batch["target"]["species"])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx), batch_size=len(batch["name"]))

    def predict_step(self, batch, batch_idx):
        return {"embedding": self.encode(batch), "name": batch["name"]}


def test_a_data_module_of_ones_own_is_clustered_during_and_after_training(tmp_path):
    during = ClusteringCallback(n_clusters=CLASSES, method="encode", label="target.species", strict=True)
    writer = PredictionWriter(tmp_path / "embeddings.parquet")
    run = quiet_trainer(max_epochs=2, callbacks=[during, writer], enable_checkpointing=False)
    model, data = OwnModel(), OwnData()
    run.fit(model, datamodule=data)
    assert "cluster_acc" in run.callback_metrics

    run.predict(model, datamodule=data, return_predictions=False)
    table = pq.read_table(tmp_path / "embeddings.parquet")
    assert table["name"].to_pylist() == [f"record {i}" for i in range(60)]
    after = CAEClusterer(CLASSES, settings={"n_init": during.config.n_init}).fit(
        np.stack(table["embedding"].to_numpy())
    )
    # The same features, the same k-means: the callback's last clusters, by other numbers perhaps.
    pairs = set(zip(after.labels_.tolist(), during.clustering.labels.tolist(), strict=True))
    assert len(pairs) == CLASSES


def test_the_readmes_lines_run_as_they_are(tmp_path, monkeypatch, fake_encoder, text_files):
    section = (ROOT / "README.md").read_text().split("## In your own Lightning project")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    train, val = cifar10(per_class=5)

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return train

        def val_dataloader(self):
            return val

        predict_dataloader = val_dataloader

    pytest.importorskip("cae.encoders.lite")
    # A small one, so that it takes no minute.
    monkeypatch.setattr("cae.encoders.lite.LiteEncoder", lambda: fake_encoder)
    monkeypatch.setattr(fake_encoder, "image_size", 32)
    X = np.random.default_rng(0).normal(size=(200, fake_encoder.dim))
    names = {"model": FineTuned(), "data": Data(), "X": X, **text_files}
    monkeypatch.setattr(
        fake_encoder,
        "encode_images",
        lambda images: type(fake_encoder).encode_images(fake_encoder, torch.nn.functional.interpolate(images, 4)),
    )
    for block in blocks:
        exec(block, names)
    assert names["clusters"].clustering.scores["acc"] > 0
    assert pq.read_table("clusters.parquet").num_rows == 50
    assert set(names["labels"]) <= set(range(10))
