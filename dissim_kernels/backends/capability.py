"""Compute capabilities of NVIDIA GPUs, and whether kernels compiled for a list of architectures run on them."""

from __future__ import annotations

import re
from functools import cache

import torch


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a CUDA device, like (8, 0); without an index, of the current device. Cached."""
    return _capability_of_index(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _capability_of_index(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def describe(device: torch.device) -> str:
    """A description of the device, like "cuda:1 (NVIDIA A100, compute capability 8.0)"."""
    major, minor = capability(device)
    return f"{device} ({torch.cuda.get_device_name(device)}, compute capability {major}.{minor})"


def serves(archs: str, wanted: tuple[int, int]) -> bool:
    """Whether kernels compiled for `archs`, a list like "8.0;9.0;10.0+PTX", run on a device of this capability.

    Machine code runs on the same major and an equal or higher minor capability; PTX ("+PTX") also on every higher
    one. Code with a suffix is not portable: "a" runs on that capability only, other suffixes on the same major one
    only.
    """
    for arch in re.split(r"[;\s]+", archs.strip()):
        if not (parts := re.fullmatch(r"(\d+)\.(\d+)([a-z]?)(\+PTX)?", arch)):
            continue
        built = int(parts[1]), int(parts[2])
        same_major = built[0] == wanted[0] and parts[3] != "a"
        from_ptx = bool(parts[4]) and not parts[3]
        if built == wanted or (built < wanted and (same_major or from_ptx)):
            return True
    return False
