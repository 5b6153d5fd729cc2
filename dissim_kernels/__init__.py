"""Fused dissimilarity-space scores, top-k and hinge loss for PyTorch, without the N x M x D tensor.

`dissim_kernels.numpy` is the same for NumPy arrays and does not need torch. So torch is not imported here: the public
names, and with them the operators in `torch.ops.dissim`, are there at once where torch was imported before, else from
the first use of a name on.
"""

import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING or "torch" in _sys.modules:
    from .ops import (
        CertifiedTopK,
        Quantised,
        TopK,
        available_backends,
        certified_dissim_topk,
        fused_dissim_hinge_loss,
        fused_dissim_score,
        fused_dissim_topk,
        last_backend,
        paired_dissim_score,
        quantise_references,
    )

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


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import ops

    return globals().setdefault(name, getattr(ops, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
