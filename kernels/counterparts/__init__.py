"""Counterparts of images in a text space (Eq. 7-9)."""

from cae.kernels.counterparts.op import counterparts

__all__ = ["counterparts"]
