"""Image retrieval with a learned pair score: train, evaluate, index and search with the same score."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .distributed import gather, gather_references
from .embedding_file import read_features
from .evaluation import evaluate, expand_queries, k_reciprocal_rerank, per_query_metrics, retrieval_metrics
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
from .losses import HingeLoss, InfoNCELoss, NCALoss, PrototypeLoss, SoftMarginLoss, SupConLoss
from .memory import CrossBatchMemory
from .projected import ProjectedHead
from .references import References
from .train import TrainConfig, load_trained, train

if TYPE_CHECKING:
    from .interop import PMLLoss, ScoreDistance
    from .triplet import TripletLoss

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

#: Name -> its module. Imported on use, because pytorch-metric-learning takes more than a second to import.
_LAZY = {"PMLLoss": "interop", "ScoreDistance": "interop", "TripletLoss": "triplet"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
