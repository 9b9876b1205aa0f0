"""How long to train: TAC's batch sizes and epochs, which depend on the number of clusters."""

from __future__ import annotations

import math

MANY_CLUSTERS = 100
EPOCHS, BATCH = 20, 512
"""TAC's, for fewer than `MANY_CLUSTERS` clusters."""
MANY_EPOCHS, MANY_BATCH = 100, 8192
"""TAC's, from `MANY_CLUSTERS` clusters on."""
MIN_STEPS = 100
"""Small sets get more epochs until they make this many steps; TAC's smallest, STL-10, makes 180."""


def batch_size(n_clusters: int) -> int:
    """TAC's number of images in a step."""
    return MANY_BATCH if n_clusters >= MANY_CLUSTERS else BATCH


def epochs(n_images: int, batch_size: int, n_clusters: int) -> int:
    """TAC's number of epochs, or more where that would make fewer than `MIN_STEPS` steps."""
    steps_per_epoch = max(n_images // batch_size, 1)
    return max(MANY_EPOCHS if n_clusters >= MANY_CLUSTERS else EPOCHS, math.ceil(MIN_STEPS / steps_per_epoch))
