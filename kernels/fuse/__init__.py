"""Prototype-weighted fusion of an image with its counterparts (Eq. 14-17)."""

from .op import fuse

__all__ = ["fuse"]
