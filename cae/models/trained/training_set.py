"""What a head is trained on: the embeddings of images and their counterparts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.nn.functional import normalize

from cae.method import pipeline
from cae.method.fitted import FittedCAE
from cae.text import TextBank


@dataclass(frozen=True)
class TrainingSet:
    """What training runs on; N images.

    Attributes:
        x: (N, D) float32 unit image embeddings.
        parts: `image` and each text modality: (N, D) float32 unit rows, without the modality's mean where the config
            centres.
        fitted: the state that training fills in: texts, means and settings of the training-free fit.
        banks: the banks that the texts come from.
    """

    x: Tensor
    parts: dict[str, Tensor]
    fitted: FittedCAE
    banks: Mapping[str, TextBank]


def centred_parts(x: Tensor, fitted: FittedCAE) -> dict[str, Tensor]:
    """Images and counterparts as the heads see them: (N, D) unit rows, each modality without its mean.

    Args:
        x: (N, D) float32 unit image embeddings.
        fitted: gives texts, potentials and means; the means are zero where its config does not centre.
    """
    seen = pipeline.representations(x, fitted)
    names = ("image", *fitted.config.modalities)
    return {name: normalize(seen[name] - mean, dim=1) for name, mean in zip(names, fitted.means, strict=True)}


def batches_of(source: Any) -> Iterable[Any]:
    """The batches of a DataModule, by its train loader or else its predict loader; or of a loader itself."""
    if not isinstance(source, pl.LightningDataModule):
        return source
    for name in ("train_dataloader", "predict_dataloader"):
        if is_overridden(name, source, pl.LightningDataModule):
            return getattr(source, name)()
    raise ValueError(f"{type(source).__name__} has neither a train_dataloader nor a predict_dataloader")
