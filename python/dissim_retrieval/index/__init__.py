"""An exact index of embeddings, in memory or on disk: `DissimilarityIndex`."""

from .gallery import DissimilarityIndex
from .results import RangeResult, SearchResult, StoredRows
from .settings import BackboneWeights

__all__ = ["BackboneWeights", "DissimilarityIndex", "RangeResult", "SearchResult", "StoredRows"]
