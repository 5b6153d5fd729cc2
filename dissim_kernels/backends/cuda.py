"""The backend `cuda`: the CUDA C++ kernels of csrc/cuda, where the library was built with them.

They run on devices that the library has an image for, which `capability.serves` tells of each device's own compute
capability before anything is launched.
"""

from __future__ import annotations

from functools import cache

import torch

from ..contract import Problem
from .capability import capability, named, serves
from .native import (
    NOT_LOADED,
    hinge,
    hinge_backward,
    quantize_references,
    quantized_topk,
    score,
    score_backward,
    topk,
)

__all__ = [
    "hinge",
    "hinge_backward",
    "quantize_references",
    "quantized_topk",
    "score",
    "score_backward",
    "topk",
    "unsupported_reason",
]

BUILD = "Build it where nvcc is found: FORCE_CUDA=1 pip install --no-build-isolation . (see setup.py)."


def unsupported_reason(problem: Problem) -> str | None:
    if problem.device.type != "cuda":
        return f"it runs tensors on CUDA devices, these are on {problem.device.type!r}"
    return NOT_LOADED or _no_image(problem.device)


@cache
def compiled_archs() -> str:
    """The architectures whose kernels are in the library, "8.0;9.0;10.0+PTX" for one; empty without any."""
    return torch.ops.dissim_native.cuda_archs()


@cache
def _no_image(device: torch.device) -> str | None:
    """The reason why no compiled kernel runs on this device, or None."""
    archs = compiled_archs()
    if not archs:
        return f"the compiled library has no CUDA kernels. {BUILD}"
    major, minor = capability(device)
    if serves(archs, (major, minor)):
        return None
    reason = f"its kernels were compiled for compute capability {archs}, which does not serve {named(device)}"
    if (major, minor) < (8, 0):
        return f"{reason}, and need 8.0 or more"
    return f"{reason}. Build it for this device: TORCH_CUDA_ARCH_LIST={major}.{minor}+PTX."
