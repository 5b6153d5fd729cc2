"""Image retrieval with a learned pair score: train, evaluate, index and search with the same score."""

from .distributed import gather, gather_references
from .evaluation import evaluate, expand_queries, k_reciprocal_rerank, per_query_metrics, retrieval_metrics
from .feature_file import read_features
from .fit import fit_head
from .head import DissimilarityHead
from .held_out import HeldOutCheck
from .index import (
    BackboneWeights,
    DissimilarityIndex,
    FaissExport,
    RangeResult,
    RayDissimilarityIndex,
    SearchResult,
    StoredRows,
    export_faiss,
)
from .interop import PMLLoss, ScoreDistance
from .losses import HingeLoss, InfoNCELoss, NCALoss, PrototypeLoss, SoftMarginLoss, SupConLoss, TripletLoss
from .memory import CrossBatchMemory
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
    "RayDissimilarityIndex",
    "References",
    "ScoreDistance",
    "SearchResult",
    "SoftMarginLoss",
    "StoredRows",
    "SupConLoss",
    "TrainConfig",
    "TripletLoss",
    "evaluate",
    "expand_queries",
    "export_faiss",
    "fit_head",
    "gather",
    "gather_references",
    "k_reciprocal_rerank",
    "load_trained",
    "per_query_metrics",
    "read_features",
    "retrieval_metrics",
    "train",
]
