"""Class labels of any kind, strings included, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from cae.metrics.functional import as_labels


def as_classes(labels: np.ndarray) -> np.ndarray:
    """Classes (N,) as whole numbers or strings.

    Raises:
        ValueError: some are missing, or they are neither.
    """
    if labels.ndim != 1:
        raise ValueError(f"labels of shape {labels.shape} are not one for each row")
    if labels.dtype.kind in "iubU":
        return labels
    missing = [i for i, label in enumerate(labels.tolist()) if label is None or label != label]
    if missing:
        raise ValueError(f"row {missing[0]} (the first is 0) has no label: leave it out, or name its class")
    if labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels):
        return labels.astype(str)
    raise ValueError(
        f"labels are {labels.dtype}, as {labels.tolist()[0]!r}, not classes: give names or whole numbers (.astype(int))"
    )


def class_numbers(labels: Tensor | np.ndarray | Sequence[Any]) -> Tensor:
    """Classes (N,) as int64, strings numbered in their order.

    Raises:
        ValueError: as `as_classes`.
    """
    found = as_classes(np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels))
    return as_labels(np.unique(found, return_inverse=True)[1] if found.dtype.kind == "U" else found)
