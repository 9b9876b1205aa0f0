"""Where a batch's embeddings and class labels come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from cae.callbacks.outputs import describe, look_up

METHOD_HINT = "give the callback method=lambda module, batch: module.backbone(batch[0])"
"""Advice for modules whose `validation_step` returns no embeddings."""


@dataclass(frozen=True)
class EmbeddingSource:
    """The arguments `embedding`, `label` and `method` of `cae.callbacks.ClusteringCallback`."""

    embedding: str | Callable[[Any], Tensor] | None
    label: str | Callable[[Any], Tensor] | None
    method: str | Callable[[Any, Any], Any] | None

    @property
    def name(self) -> str:
        """A short name of what is clustered."""
        return _name_of(self.embedding or self.method)

    def check(self, pl_module: pl.LightningModule) -> None:
        """Check that the module has the method.

        Raises:
            ValueError: it has not.
        """
        if isinstance(self.method, str) and not callable(getattr(pl_module, self.method, None)):
            own = [name for name in dir(type(pl_module)) if not hasattr(pl.LightningModule, name) and name[0] != "_"]
            there = f"it has {', '.join(own)}: name one that takes the batch, or" if own else "add one, or"
            problem = f"{type(pl_module).__name__} has no method {self.method!r}"
            raise ValueError(f"method={self.method!r}: {problem}; {there} {METHOD_HINT}")

    def read(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, width: int | None
    ) -> list[Tensor]:
        """The embeddings (B, D) float32 of a batch, and its labels (B,) int64 if there are any.

        Args:
            trainer: the trainer, whose precision applies to `method`.
            pl_module: the module, which has the method.
            outputs: result of `validation_step`.
            batch: the batch.
            width: D of the earlier batches; None for the first.

        Raises:
            LookupError: no embeddings or no labels where they should be.
            ValueError: something else is there, or the method failed.
        """
        source, labelled = ("validation_step", outputs), ("validation_step", outputs)
        if self.method is not None:
            named = self.method if isinstance(self.method, str) else getattr(self.method, "__qualname__", "")
            with trainer.precision_plugin.val_step_context():
                source = (f"method {named}", self._call_method(pl_module, batch))
            labelled = ("the batch", batch)
        columns = [self._embeddings(*source, width).float()]
        if self.label is not None:
            columns.append(self._labels(*labelled, len(columns[0])).long())
        return columns

    def _embeddings(self, owner: str, value: Any, width: int | None) -> Tensor:
        try:
            x = look_up(self.embedding, owner, value) if self.embedding else value
        except LookupError as error:
            if self.method is not None:
                raise
            raise LookupError(f"{error}; return it there, or {METHOD_HINT}") from error
        name = f"embedding {self.embedding!r} of {owner}" if self.embedding else f"the result of {owner}"
        if not isinstance(x, Tensor) or x.ndim != 2 or not x.is_floating_point():
            hint = "; pool it, or add .flatten(1)" if isinstance(x, Tensor) and x.ndim > 2 else ""
            raise ValueError(f"{name} must be a tensor of floats (B, D), got {describe(x)}{hint}")
        if width not in (None, x.shape[1]):
            raise ValueError(f"{name} has shape {tuple(x.shape)}, but width {width} in the batches before")
        return x

    def _labels(self, owner: str, value: Any, n: int) -> Tensor:
        assert self.label is not None
        y = look_up(self.label, owner, value)
        if not isinstance(y, Tensor) or y.shape != (n,) or y.is_floating_point():
            raise ValueError(
                f"label {self.label!r} of {owner} must be a tensor of whole numbers ({n},), got {describe(y)}"
            )
        # Asked of the signed types alone: the unsigned have none below 0, and PyTorch compares few of those.
        without = int((y < 0).sum()) if y.dtype.is_signed else 0
        if without:
            raise ValueError(
                f"label {self.label!r} of {owner} is negative for {without} of {n} samples, which would count as a "
                "class: leave out samples without a class, which data sets often number -1, or have no labels "
                "(label=None)"
            )
        return y

    def _call_method(self, pl_module: pl.LightningModule, batch: Any) -> Any:
        assert self.method is not None
        method = getattr(pl_module, self.method) if isinstance(self.method, str) else partial(self.method, pl_module)
        try:
            return method(batch)
        except Exception as error:
            name, given = _name_of(self.method), describe(batch)
            if isinstance(self.method, str):
                given, error_hint = f"the whole batch, {given}", f"; for a part of it, {METHOD_HINT}"
            else:
                given, error_hint = f"the module and the batch, {given}", ""
            raise ValueError(f"method={name!r} was given {given}, and failed: {error}{error_hint}") from error


def _name_of(where: Any) -> str:
    return where if isinstance(where, str) else getattr(where, "__qualname__", type(where).__name__)
