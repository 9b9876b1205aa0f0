"""Selection of the texts that span the semantic space (Eq. 2-3)."""

from .op import Mode, retrieve

__all__ = ["Mode", "retrieve"]
