"""Clustering networks that are trained on the embeddings and texts of the training-free method.

| class      | `method`    | what                                                                              |
|------------|-------------|-----------------------------------------------------------------------------------|
| `TAC`      | `tac-heads` | heads on images and noun counterparts (arXiv 2310.11989)                          |
| `CAEHeads` | `cae-heads` | the same training on CAE's noun and caption counterparts                          |
| `MCA`      | `mca`       | our reading of multi-level cross-modal alignment (arXiv 2401.11740)               |
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cae.models.cae import CAE
from cae.models.trained.mca import MCA
from cae.models.trained.module import TrainedClustering
from cae.models.trained.tac import TAC, CAEHeads
from cae.utils.checksums import load_json
from cae.utils.files import tidy

__all__ = ["MCA", "TAC", "TRAINED", "CAEHeads", "TrainedClustering", "load_pretrained"]

TRAINED: dict[str, type[TrainedClustering]] = {cls.method: cls for cls in (TAC, CAEHeads, MCA)}
"""Every trained method by its name."""


def load_pretrained(folder: str | os.PathLike[str], **overrides: Any) -> CAE:
    """Load a model folder, whichever method wrote it.

    Args:
        folder: written by `save_pretrained` of `cae.CAE` or of a trained method.
        overrides: arguments of `from_pretrained`.

    Raises:
        ModelError: no model folder, damaged, or of a newer format.
    """
    tidy(Path(folder))
    try:
        method = TRAINED.get(load_json(Path(folder, "config.json")).get("method"), CAE)
    except (OSError, ValueError, AttributeError, TypeError):
        method = CAE  # what is wrong with the folder is for `CAE` to say
    return method.from_pretrained(folder, **overrides)
