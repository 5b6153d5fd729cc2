"""The `torch.library` operators and the public functions over them, one file for each operation."""

from ..dispatch import available_backends, last_backend
from .certified import CertifiedTopK, Quantised, certified_dissim_topk, quantise_references
from .hinge import fused_dissim_hinge_loss
from .score import fused_dissim_score, paired_dissim_score
from .topk import TopK, fused_dissim_topk

__all__ = [
    "CertifiedTopK",
    "Quantised",
    "TopK",
    "available_backends",
    "certified_dissim_topk",
    "fused_dissim_hinge_loss",
    "fused_dissim_score",
    "fused_dissim_topk",
    "last_backend",
    "paired_dissim_score",
    "quantise_references",
]
