"""Entropic optimal transport between unit vectors (Eq. 4-6, 10-11)."""

from .acceleration import AndersonAcceleration
from .divergence import sinkhorn_divergence
from .op import cosine_sinkhorn
from .solver import ConvergenceWarning, SinkhornResult

__all__ = ["AndersonAcceleration", "ConvergenceWarning", "SinkhornResult", "cosine_sinkhorn", "sinkhorn_divergence"]
