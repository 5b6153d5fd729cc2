"""An exact index of embeddings, in memory or on disk: `DissimilarityIndex`."""

from .faiss_export import FaissExport, export_faiss
from .gallery import DissimilarityIndex
from .results import RangeResult, SearchResult, StoredRows
from .settings import BackboneWeights

__all__ = [
    "BackboneWeights",
    "DissimilarityIndex",
    "FaissExport",
    "RangeResult",
    "SearchResult",
    "StoredRows",
    "export_faiss",
]
