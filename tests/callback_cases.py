"""A model, data and trainers for the tests of the callbacks."""

import random
import warnings

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

K, D = 3, 8


class Classifier(pl.LightningModule):
    """Somebody's model: a linear layer to embeddings and one to classes."""

    def __init__(self, outputs=lambda z, y: {"embedding": z, "label": y}):
        super().__init__()
        self.body, self.head, self.outputs = torch.nn.Linear(D, D), torch.nn.Linear(D, K), outputs
        self.dropout = torch.nn.Dropout(0.1)

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.head(self.dropout(self.body(batch[0]))), batch[1])

    def validation_step(self, batch, batch_idx):
        return self.outputs(self.body(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def embed(self, batch):
        return self.body(batch[0])

    def noisy(self, batch):
        assert not torch.is_grad_enabled()
        noise = torch.rand(()) + random.random() + np.random.rand()
        return {"z": self.body(batch[0]) + 1e-6 * noise}


def samples(n=90, shift=2.0):
    y = torch.arange(n) % K
    noise = torch.randn(n, D, generator=torch.Generator().manual_seed(0))
    return TensorDataset(torch.eye(D)[y] * shift + 0.3 * noise, y)


def loader(data=None, **options):
    return DataLoader(data or samples(), **{"batch_size": 32, **options})


def trainer(*callbacks, logger=False, **options):
    options = {"max_epochs": 2, "num_sanity_val_steps": 0, **options}
    return pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )


def fit(run, module=None, train=None, val=None, **options):
    with warnings.catch_warnings():
        # A hint about speed, which a test on a few samples does not need.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        run.fit(module or Classifier(), train or loader(), val or loader(), **options)


def validate(run, module=None, val=None):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        run.validate(module or Classifier(), loader() if val is None else val, verbose=False)
