"""Selection of the texts that span the semantic space (Eq. 2-3)."""

from cae.kernels.retrieve.mode import Mode
from cae.kernels.retrieve.op import retrieve

__all__ = ["Mode", "retrieve"]
