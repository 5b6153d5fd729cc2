"""Fused dissimilarity-space scores, top-k and hinge loss for PyTorch, without the N x M x D tensor.

`dissim_kernels.numpy` is the same for NumPy arrays and does not need torch. So torch is not imported here: the public
names, the operators in `torch.ops.dissim` and what `torch.load` may read are there at once where torch was imported
before, else as soon as it is imported or a name is used.
"""

import importlib.util as _util
import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING or "torch" in _sys.modules:
    from .ops import (
        QuantizedReferences,
        Ranks,
        ScoredRanks,
        TopK,
        TopKStats,
        available_backends,
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


class _TorchComes:
    """Finds torch as it is found without this class, and has the operators follow once it is imported: programs that
    torch.export.load and codes that torch.load read name them, whichever package was imported first."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "torch":
            return None
        _sys.meta_path.remove(cls)
        spec = _util.find_spec("torch")
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            ours = {name.removeprefix(f"{__name__}.") for name in _sys.modules if name.startswith(f"{__name__}.")}
            if ours <= {"numpy", "_numpy"}:  # any other module of ours is importing torch for itself
                from . import ops  # noqa: F401

        spec.loader.exec_module = exec_module
        return spec


if "torch" not in _sys.modules:
    _sys.meta_path.insert(0, _TorchComes)

__all__ = [
    "QuantizedReferences",
    "Ranks",
    "ScoredRanks",
    "TopK",
    "TopKStats",
    "available_backends",
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
