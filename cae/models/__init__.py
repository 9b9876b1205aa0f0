"""What people hold: LightningModules, and the scikit-learn estimator.

Names are loaded at first use, since Lightning takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cae.utils.lazy import lazy

if TYPE_CHECKING:
    from cae.models.cae import CAE
    from cae.models.embedder import Embedder
    from cae.models.estimator import CAEClusterer
    from cae.models.trained import MCA, TAC, CAEHeads

_HOMES = {
    "CAE": "cae.models.cae",
    "CAEClusterer": "cae.models.estimator",
    "CAEHeads": "cae.models.trained",
    "Embedder": "cae.models.embedder",
    "MCA": "cae.models.trained",
    "TAC": "cae.models.trained",
}

__all__ = ["CAE", "MCA", "TAC", "CAEClusterer", "CAEHeads", "Embedder"]

__getattr__, __dir__ = lazy(__name__, _HOMES)
