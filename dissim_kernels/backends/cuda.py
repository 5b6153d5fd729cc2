"""The backend `cuda`: the CUDA C++ kernels of csrc/cuda, where the library was built with them."""

from __future__ import annotations

import torch

from ..contract import Problem
from .native import NOT_LOADED, certified, hinge, hinge_backward, quantise_references, score, score_backward, topk

__all__ = [
    "certified",
    "hinge",
    "hinge_backward",
    "quantise_references",
    "score",
    "score_backward",
    "topk",
    "why_not",
]

BUILD = "Build it where nvcc is found: FORCE_CUDA=1 pip install --no-build-isolation . (see setup.py)."


def why_not(problem: Problem) -> str | None:
    if problem.device != "cuda":
        return f"it runs tensors on CUDA devices, these are on {problem.device!r}"
    if NOT_LOADED or torch.ops.dissim_native.cuda_archs():
        return NOT_LOADED
    return f"the compiled library has no CUDA kernels. {BUILD}"
