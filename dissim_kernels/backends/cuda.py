"""The backend `cuda`: the CUDA C++ kernels of csrc/cuda, if the library was built with them.

A device is supported if the library contains code for its compute capability. `capability.serves` checks that before
a kernel is launched.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ..contract import LogSumExpBackwardArguments, Problem
from . import logsumexp_bands
from .capability import capability, describe, serves
from .native import (
    NOT_LOADED,
    cluster_references,
    hinge,
    hinge_backward,
    listed_scores,
    logsumexp,
    quantize_references,
    quantized_topk,
    rank,
    score,
    score_backward,
    topk,
)

__all__ = [
    "cluster_references",
    "hinge",
    "hinge_backward",
    "listed_scores",
    "logsumexp",
    "logsumexp_backward",
    "quantize_references",
    "quantized_topk",
    "rank",
    "score",
    "score_backward",
    "topk",
    "unsupported_reason",
]

BUILD = "In a clone of dissim-kernels, run `FORCE_CUDA=1 pip install -e .` (needs nvcc)."


def unsupported_reason(problem: Problem) -> str | None:
    if problem.device.type != "cuda":
        return f"it runs tensors on CUDA devices, not on {problem.device.type!r}"
    if problem.operation == "clustered_topk":
        return "it has no search of clusters"
    return NOT_LOADED or _unsupported_device_reason(problem.device)


def logsumexp_backward(given: LogSumExpBackwardArguments, needs: Sequence[bool]) -> list[Tensor]:
    return logsumexp_bands.backward(score, score_backward, given, needs)


@cache
def compiled_archs() -> str:
    """The architectures that the library has kernels for, like "8.0;9.0;10.0+PTX"; empty if it has none."""
    return torch.ops.dissim_native.cuda_archs()


@cache
def _unsupported_device_reason(device: torch.device) -> str | None:
    """The reason why no compiled kernel runs on this device, or None."""
    archs = compiled_archs()
    if not archs:
        return f"the compiled library has no CUDA kernels. {BUILD}"
    major, minor = capability(device)
    if serves(archs, (major, minor)):
        return None
    reason = f"its kernels are compiled for compute capability {archs}, which do not run on {describe(device)}"
    if (major, minor) < (8, 0):
        return f"{reason}, and need 8.0 or more"
    return f"{reason}. Build it for this device: TORCH_CUDA_ARCH_LIST={major}.{minor}+PTX."
