"""Fused signed weighted L1 scores, top-k and hinge loss of all pairs for PyTorch, without the N x M x D tensor.

`dissim_kernels.numpy` works on NumPy arrays and does not need torch, so this module does not import torch. The public
names, the operators in `torch.ops.dissim` and the types that `torch.load` accepts are registered

- at once if torch was imported before;
- otherwise when torch is imported, or when a public name is used.
"""

import importlib.util as _util
import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING or "torch" in _sys.modules:
    from .ops import (
        ClusteredReferences,
        QuantizedReferences,
        Ranks,
        ScoredRanks,
        TopK,
        TopKStats,
        available_backends,
        cluster_references,
        fused_dissim_hinge_loss,
        fused_dissim_logsumexp,
        fused_dissim_rank,
        fused_dissim_score,
        fused_dissim_topk,
        last_backend,
        paired_dissim_score,
        quantize_references,
        unavailable_backends,
    )


class _TorchImportHook:
    """An import hook (a finder in sys.meta_path) that registers the operators right after torch is imported.

    Programs read by torch.export.load name the operators, and files read by torch.load name `QuantizedReferences`
    or `ClusteredReferences`.
    Both must work if this package was imported before torch. The hook finds torch in the normal way and removes
    itself.
    """

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "torch":
            return None
        _sys.meta_path.remove(cls)
        spec = _util.find_spec("torch")
        if spec is None or spec.loader is None:
            return spec
        import_torch = spec.loader.exec_module

        def exec_module(module):
            import_torch(module)
            imported = {name.removeprefix(f"{__name__}.") for name in _sys.modules if name.startswith(f"{__name__}.")}
            # If another module of this package is imported, it is the one that imports torch, and it needs no help.
            if imported <= {"numpy", "_numpy"}:
                from . import ops  # noqa: F401

        spec.loader.exec_module = exec_module
        return spec


if "torch" not in _sys.modules:
    _sys.meta_path.insert(0, _TorchImportHook)

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


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import ops

    return globals().setdefault(name, getattr(ops, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
