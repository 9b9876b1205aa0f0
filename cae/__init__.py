"""CAE: training-free image clustering with nouns and captions (arXiv 2512.00904).

Names are loaded at first use, so that `cae --help` answers at once and `cae.kernels` needs nothing but torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cae.lazy import lazy

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

__getattr__, __dir__ = lazy(__name__, _HOMES)
