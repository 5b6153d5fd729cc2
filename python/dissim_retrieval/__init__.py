"""Image retrieval with a learned pair score: train, evaluate, index and search with the same score."""

from .distributed import gather, gather_references
from .evaluate import evaluate
from .feature_file import read_features
from .fit import fit_head
from .head import DissimilarityHead
from .held_out import HeldOutCheck
from .index import (
    BackboneWeights,
    DissimilarityIndex,
    FaissExport,
    RangeResult,
    SearchResult,
    StoredRows,
    export_faiss,
)
from .interop import PMLLoss, ScoreDistance
from .losses import HingeLoss, InfoNCELoss, NCALoss, PrototypeLoss, SoftMarginLoss, SupConLoss, TripletLoss
from .memory import CrossBatchMemory
from .metrics import retrieval_metrics
from .projected import ProjectedHead
from .references import References
from .train import TrainConfig, load_trained, train

__all__ = [
    "BackboneWeights",
    "CrossBatchMemory",
    "DissimilarityHead",
    "DissimilarityIndex",
    "FaissExport",
    "HeldOutCheck",
    "HingeLoss",
    "InfoNCELoss",
    "NCALoss",
    "PMLLoss",
    "ProjectedHead",
    "PrototypeLoss",
    "RangeResult",
    "References",
    "ScoreDistance",
    "SearchResult",
    "SoftMarginLoss",
    "StoredRows",
    "SupConLoss",
    "TrainConfig",
    "TripletLoss",
    "evaluate",
    "export_faiss",
    "fit_head",
    "gather",
    "gather_references",
    "load_trained",
    "read_features",
    "retrieval_metrics",
    "train",
]
