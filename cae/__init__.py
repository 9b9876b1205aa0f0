"""CAE: training-free image clustering with nouns and captions (arXiv 2512.00904).

Names are loaded at first use, so that `cae --help` answers at once and `cae.kernels` needs nothing but torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cae.utils.lazy import lazy

if TYPE_CHECKING:
    from cae.api import Result, cluster
    from cae.config import CAEConfig
    from cae.data import ImageFolderData
    from cae.method.fitted import FittedCAE
    from cae.models.cae import CAE
    from cae.models.estimator import CAEClusterer
    from cae.models.trained import MCA, TAC, CAEHeads
    from cae.results.saved import SavedResult

_HOMES = {
    "CAE": "cae.models.cae",
    "Result": "cae.api",
    "cluster": "cae.api",
    "CAEClusterer": "cae.models.estimator",
    "CAEConfig": "cae.config",
    "CAEHeads": "cae.models.trained",
    "FittedCAE": "cae.method.fitted",
    "ImageFolderData": "cae.data",
    "MCA": "cae.models.trained",
    "SavedResult": "cae.results.saved",
    "TAC": "cae.models.trained",
}

__all__ = [
    "CAE",
    "MCA",
    "TAC",
    "CAEClusterer",
    "CAEConfig",
    "CAEHeads",
    "FittedCAE",
    "ImageFolderData",
    "Result",
    "SavedResult",
    "cluster",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
