"""Callbacks for any Lightning project: cluster embeddings during validation, stream predictions to disk."""

from cae.callbacks.clustering import ClusteringCallback
from cae.callbacks.prediction_writer import PredictionWriter
from cae.callbacks.sample import Clustering, ClusteringError

__all__ = ["Clustering", "ClusteringCallback", "ClusteringError", "PredictionWriter"]
