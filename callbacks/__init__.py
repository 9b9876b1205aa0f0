"""Callbacks for any Lightning project: cluster embeddings during validation, stream predictions to disk."""

from cae.callbacks.clustering import Clustering, ClusteringCallback, ClusteringError
from cae.callbacks.prediction_writer import PredictionWriter

__all__ = ["Clustering", "ClusteringCallback", "ClusteringError", "PredictionWriter"]
