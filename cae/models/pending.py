"""Predictions that the Trainer holds before there is a fit to make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cae.method.pipeline import Prediction


class PendingPredictions:
    """Placeholders for the predictions of all batches, overwritten in place once the fit has been made.

    A fresh module labels nothing before it has seen all images, but Lightning takes what `predict_step` returns batch
    by batch, and keeps these very tensors.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, dict[str, Tensor]]] = []

    def add(self, index: Tensor, n_modalities: int) -> dict[str, Tensor]:
        """Placeholders for a batch on the CPU: label -1, the rest NaN.

        Args:
            index: (B,) int64 ids of the batch's samples.
            n_modalities: number of modalities that are fused, the image among them.
        """
        n = len(index)
        label, number = torch.full((n,), -1), torch.full((n,), float("nan"))
        beta = torch.full((n, n_modalities), float("nan"))
        placeholder = Prediction(label, number, label.clone(), number.clone(), beta, label.clone())
        self._batches.append((index, on_cpu(placeholder)))
        return self._batches[-1][1]

    def fill(self, found: Mapping[str, Tensor], find: Callable[[Tensor], Tensor]) -> None:
        """Overwrite every placeholder, and forget them.

        Args:
            found: the fields of `Prediction` for all samples.
            find: takes ids (M,) to their rows in `found`.
        """
        batches, self._batches = self._batches, []
        if not batches:
            return
        indices, results = zip(*batches, strict=True)
        rows_by_batch = find(torch.cat(indices)).split([len(index) for index in indices])
        for rows, result in zip(rows_by_batch, results, strict=True):
            for key, values in found.items():
                result[key].copy_(values[rows])


def on_cpu(prediction: Prediction) -> dict[str, Tensor]:
    """The fields of a prediction by name, on the CPU."""
    return {key: value.cpu() for key, value in prediction._asdict().items()}
