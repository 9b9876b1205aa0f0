"""Counterparts of images in a text space (Eq. 7-9)."""

from .op import counterparts

__all__ = ["counterparts"]
