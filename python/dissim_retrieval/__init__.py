"""Image retrieval with a learned pair score: train, evaluate, index and search with the same score."""

from .evaluate import evaluate
from .head import DissimilarityHead
from .index import BackboneWeights, DissimilarityIndex, RangeResult, SearchResult, StoredRows
from .losses import HingeLoss, TripletLoss
from .metrics import retrieval_metrics
from .train import TrainConfig, load_trained, train

__all__ = [
    "BackboneWeights",
    "DissimilarityHead",
    "DissimilarityIndex",
    "HingeLoss",
    "RangeResult",
    "SearchResult",
    "StoredRows",
    "TrainConfig",
    "TripletLoss",
    "evaluate",
    "load_trained",
    "retrieval_metrics",
    "train",
]
