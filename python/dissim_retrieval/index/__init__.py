"""An exact index of embeddings, in memory or on disk, `DissimilarityIndex`, or over several machines."""

import os

# A long condition needs a deep stack: a thread of Lance whose stack overflows ends the process. Lance's threads read
# the size of their stacks here.
os.environ.setdefault("RUST_MIN_STACK", str(32 << 20))

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
