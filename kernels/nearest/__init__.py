"""The nearest centroids of each row: labels, and texts that name a cluster."""

from .op import Nearest, nearest

__all__ = ["Nearest", "nearest"]
