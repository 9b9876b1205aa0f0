"""Entropic optimal transport between unit vectors (Eq. 4-6, 10-11)."""

from cae.kernels.sinkhorn.acceleration import AndersonAcceleration
from cae.kernels.sinkhorn.divergence import sinkhorn_divergence
from cae.kernels.sinkhorn.op import cosine_sinkhorn
from cae.kernels.sinkhorn.solver import ConvergenceWarning, SinkhornResult

__all__ = ["AndersonAcceleration", "ConvergenceWarning", "SinkhornResult", "cosine_sinkhorn", "sinkhorn_divergence"]
