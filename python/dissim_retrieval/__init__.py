"""Image retrieval with a learned pair score: train, evaluate, index and search with the same score."""

from .evaluate import evaluate
from .head import DissimilarityHead
from .index import DissimilarityIndex, SearchResult
from .losses import HingeLoss, TripletLoss
from .metrics import retrieval_metrics
from .train import TrainConfig, load_trained, train

__all__ = [
    "DissimilarityHead",
    "DissimilarityIndex",
    "HingeLoss",
    "SearchResult",
    "TrainConfig",
    "TripletLoss",
    "evaluate",
    "load_trained",
    "retrieval_metrics",
    "train",
]
