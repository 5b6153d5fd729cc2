"""Compute capabilities of NVIDIA GPUs, and which of them a list of compiled architectures serves."""

from __future__ import annotations

import re
from functools import cache

import torch


def capability(device: torch.device) -> tuple[int, int]:
    """Of a CUDA device, (8, 0) for an A100; the current device where it has no index. Asked once for each device."""
    return _of_index(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _of_index(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def named(device: torch.device) -> str:
    """The device in words: "cuda:1 (NVIDIA A100, compute capability 8.0)"."""
    major, minor = capability(device)
    return f"{device} ({torch.cuda.get_device_name(device)}, compute capability {major}.{minor})"


def serves(archs: str, wanted: tuple[int, int]) -> bool:
    """Whether kernels compiled for `archs`, a list like "8.0;9.0;10.0+PTX", run on a device of this capability.

    Machine code runs on the same major and an equal or higher minor capability, PTX ("+PTX") on every higher one too.
    What has a suffix is not portable: "a" is for that capability alone, others for the same major one.
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
