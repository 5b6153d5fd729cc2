"""Image retrieval in the dissimilarity space: train, evaluate, index and search by one and the same pair score."""

from .evaluate import evaluate
from .head import DissimilarityHead
from .index import DissimilarityIndex
from .losses import HingeLoss, TripletLoss
from .metrics import retrieval_metrics
from .train import TrainConfig, load_trained, train

__all__ = [
    "DissimilarityHead",
    "DissimilarityIndex",
    "HingeLoss",
    "TrainConfig",
    "TripletLoss",
    "evaluate",
    "load_trained",
    "retrieval_metrics",
    "train",
]
