"""What all data modules share: one loader in a fixed order, for `trainer.fit`, `predict` and `test`."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities import suggested_max_num_workers
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, Dataset

MAX_WORKERS = 8
"""Default number of processes that read, where there are that many cores."""


class Data(pl.LightningDataModule):
    """Samples in a fixed order.

    Args:
        batch_size: samples per batch.
        num_workers: processes that read and prepare, so that this overlaps with encoding; None for as many as there are
            cores for, up to 8.
    """

    def __init__(self, batch_size: int, num_workers: int | None) -> None:
        super().__init__()
        self.batch_size = batch_size
        self._num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        """All samples, once, for a fit."""
        return self.loader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """All samples."""
        return self.loader()

    def test_dataloader(self) -> DataLoader[Any]:
        """All samples."""
        return self.loader()

    def loader(self) -> DataLoader[Any]:
        """All samples."""
        raise NotImplementedError

    def sampler(self, dataset: Dataset[Any]) -> UnrepeatedDistributedSampler | None:
        """A sampler of this process's share, in order and without repeats; Lightning's own would shuffle for a fit.

        Raises:
            ValueError: fewer samples than processes.
        """
        trainer = self.attached
        if trainer.world_size == 1:
            return None
        if len(dataset) < trainer.world_size:  # type: ignore[arg-type]
            raise ValueError(
                f"{len(dataset)} samples cannot be shared by {trainer.world_size} processes; "  # type: ignore[arg-type]
                "give the Trainer fewer devices"
            )
        return UnrepeatedDistributedSampler(dataset, trainer.world_size, trainer.global_rank, shuffle=False)

    @property
    def num_workers(self) -> int:
        """Processes that read and prepare."""
        if self._num_workers is not None:
            return self._num_workers
        return min(MAX_WORKERS, suggested_max_num_workers(self.attached.num_devices))

    @property
    def attached(self) -> pl.Trainer:
        """The trainer.

        Raises:
            RuntimeError: there is none yet.
        """
        if self.trainer is None:
            raise RuntimeError("a data module of cae has loaders only inside a trainer: pass it as `datamodule`")
        return self.trainer
