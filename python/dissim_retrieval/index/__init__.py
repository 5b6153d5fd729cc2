"""An exact index of embeddings, in memory or on disk, `DissimilarityIndex`, or over several machines."""

from .faiss_export import FaissExport, export_faiss
from .gallery import DissimilarityIndex
from .ray_index import RayDissimilarityIndex
from .results import RangeResult, SearchResult, StoredRows
from .settings import BackboneWeights

__all__ = [
    "BackboneWeights",
    "DissimilarityIndex",
    "FaissExport",
    "RangeResult",
    "RayDissimilarityIndex",
    "SearchResult",
    "StoredRows",
    "export_faiss",
]
