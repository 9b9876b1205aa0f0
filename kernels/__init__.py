"""The five ops that the CAE pipeline runs on; only torch is needed to import them. See kernels/README.md."""

from .counterparts import counterparts
from .dispatch import Backend
from .fuse import fuse
from .nearest import Nearest, nearest
from .retrieve import retrieve
from .sinkhorn import (
    AndersonAcceleration,
    ConvergenceWarning,
    SinkhornResult,
    cosine_sinkhorn,
    sinkhorn_divergence,
)

__all__ = [
    "AndersonAcceleration",
    "Backend",
    "ConvergenceWarning",
    "Nearest",
    "SinkhornResult",
    "cosine_sinkhorn",
    "counterparts",
    "fuse",
    "nearest",
    "retrieve",
    "sinkhorn_divergence",
]
