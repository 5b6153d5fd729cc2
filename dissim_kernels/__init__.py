"""Fused dissimilarity-space scores, top-k and hinge loss for PyTorch, without the N x M x D tensor."""

from .dispatch import available_backends, last_backend
from .ops.certified import CertifiedTopK, Quantised, certified_dissim_topk, quantise_references
from .ops.hinge import fused_dissim_hinge_loss
from .ops.score import fused_dissim_score, paired_dissim_score
from .ops.topk import TopK, fused_dissim_topk

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
