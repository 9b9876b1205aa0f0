"""A `CAE` among other people's settings: the labels are the same under every precision, loader and wrapping."""

import copy

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from test_pipeline import K, toy_world
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from cae import CAE

X, Y, BANKS = toy_world()


class Stream(IterableDataset):
    """Embeddings whose number nobody knows beforehand."""

    def __iter__(self):
        return iter(X)


def loader():
    return DataLoader(TensorDataset(X, Y), 64)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The banks as files of text vectors, so that no encoder is needed."""
    folder = tmp_path_factory.mktemp("texts")
    for modality, bank in BANKS.items():
        np.save(folder / f"{modality}.npy", bank.embeddings.float().numpy())
        (folder / f"{modality}.txt").write_text("\n".join([*bank.texts, ""]))
    return {"nouns": str(folder / "noun.npy"), "captions": str(folder / "caption.npy")}


def model(texts):
    return CAE(K, n_init=3, images_per_center=50, **texts)


def labels(module, batches, **options):
    run = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, **options)
    return torch.cat([batch["cluster"] for batch in run.predict(module, batches)])


@pytest.fixture(scope="module")
def expected(texts):
    return labels(model(texts), loader())


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*AMP with fp16 is not supported on CPU", "ignore:.*treespec"
)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "16-true", "bf16-true", "32-true", "64-true"])
def test_precision_of_the_trainer_changes_no_label(texts, expected, precision):
    assert torch.equal(labels(model(texts), loader(), precision=precision), expected)


@pytest.mark.parametrize("batches", [DataLoader(Stream(), 64), CombinedLoader([loader()], "sequential")])
def test_loaders_of_unknown_length_and_combined_ones(texts, expected, batches):
    assert torch.equal(labels(model(texts), batches), expected)


def test_without_inference_mode(texts, expected):
    assert torch.equal(labels(model(texts), loader(), inference_mode=False), expected)


def test_copied_and_compiled_modules(texts, expected):
    module = model(texts)
    labels(module, loader())
    assert torch.equal(labels(copy.deepcopy(module), loader()), expected)
    assert torch.equal(labels(torch.compile(module, backend="eager"), loader()), expected)
