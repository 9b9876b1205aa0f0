"""The five ops that the CAE pipeline runs on; only torch is needed to import them. See kernels/README.md."""

from cae.kernels.counterparts import counterparts
from cae.kernels.dispatch import Backend
from cae.kernels.fuse import fuse
from cae.kernels.nearest import Nearest, nearest
from cae.kernels.retrieve import retrieve
from cae.kernels.sinkhorn import (
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
