"""Histograms, tables and embeddings for loggers that can show more than scalars."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard, TypeVar

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

L = TypeVar("L", bound=Logger)

PROJECTED = 2000
"""Embeddings shown in TensorBoard's projector, and rows of a table."""


def log_details(
    loggers: Iterable[Logger],
    x: Tensor,
    labels: Tensor,
    classes: Tensor | None,
    n_clusters: int,
    prefix: str,
    step: int,
) -> None:
    """A histogram and the projector to TensorBoard, a table to W&B.

    Args:
        loggers: the trainer's.
        x: (N, D) float32 embeddings.
        labels: (N,) int64 clusters.
        classes: (N,) int64 classes, if known.
        n_clusters: K.
        prefix: prefix of the names.
        step: step to log under.
    """
    header = ["cluster"] if classes is None else ["cluster", "class"]
    columns = [labels] if classes is None else [labels, classes]
    rows = [list(row) for row in zip(*(column[:PROJECTED].tolist() for column in columns), strict=True)]
    for logger in loggers:
        if _is(logger, TensorBoardLogger):
            logger.experiment.add_histogram(f"{prefix}labels", labels, step, bins=n_clusters)
            logger.experiment.add_embedding(
                x[:PROJECTED], rows, tag=f"{prefix}embedding", global_step=step, metadata_header=header
            )
        elif _is(logger, WandbLogger):
            logger.log_table(f"{prefix}table", columns=header, data=rows, step=step)


def _is(logger: Logger, kind: type[L]) -> TypeGuard[L]:
    """Whether a logger is of a kind; also true for that class of `pytorch_lightning`, which has its own."""
    return any(base.__name__ == kind.__name__ for base in type(logger).__mro__)
