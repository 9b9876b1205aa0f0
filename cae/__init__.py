"""CAE: training-free image clustering with nouns and captions (arXiv 2512.00904).

Names are loaded at first use, so that `cae --help` answers at once and `cae.kernels` needs nothing but torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cae.config import CAEConfig
    from cae.data import ImageFolderData
    from cae.estimator import CAEClusterer
    from cae.module import CAE
    from cae.results import SavedResult
    from cae.state import FittedCAE
    from cae.trained import MCA, TAC, CAEHeads

_HOMES = {
    "CAE": "cae.module",
    "CAEClusterer": "cae.estimator",
    "CAEConfig": "cae.config",
    "CAEHeads": "cae.trained",
    "FittedCAE": "cae.state",
    "ImageFolderData": "cae.data",
    "MCA": "cae.trained",
    "SavedResult": "cae.results",
    "TAC": "cae.trained",
}

__all__ = ["CAE", "MCA", "TAC", "CAEClusterer", "CAEConfig", "CAEHeads", "FittedCAE", "ImageFolderData", "SavedResult"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cae' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
