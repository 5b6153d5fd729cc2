"""The `torch.library` operators and the public functions over them, one file for each operation."""

from ..dispatch import available_backends, last_backend, unavailable_backends
from .clusters import ClusteredReferences, cluster_references
from .hinge import fused_dissim_hinge_loss
from .logsumexp import fused_dissim_logsumexp
from .quantize import QuantizedReferences, quantize_references
from .rank import Ranks, ScoredRanks, fused_dissim_rank
from .score import fused_dissim_score, paired_dissim_score
from .topk import TopK, TopKStats, fused_dissim_topk

__all__ = [
    "ClusteredReferences",
    "QuantizedReferences",
    "Ranks",
    "ScoredRanks",
    "TopK",
    "TopKStats",
    "available_backends",
    "cluster_references",
    "fused_dissim_hinge_loss",
    "fused_dissim_logsumexp",
    "fused_dissim_rank",
    "fused_dissim_score",
    "fused_dissim_topk",
    "last_backend",
    "paired_dissim_score",
    "quantize_references",
    "unavailable_backends",
]
