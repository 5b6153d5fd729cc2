"""The GPU and its software: `python -m bench.gpu_environment` prints them as JSON, or why no GPU can be used."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys

import torch

from dissim_kernels.__main__ import installed

from .machine import commit


def unsupported_reason() -> str | None:
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} was built for the CPU only"
    return f"torch {torch.__version__} finds no GPU that it can use"


def describe() -> dict[str, object]:
    """The current device and the versions of all tools that affect the result."""
    properties = torch.cuda.get_device_properties()
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "driver": _driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": installed("triton"),
        "nvcc": _nvcc(),
        "python": platform.python_version(),
        "commit": commit(),
    }


def environment_summary(facts: dict) -> str:
    return (
        "{device} (capability {capability}, {memory_gib} GiB), driver {driver}; torch {torch}, CUDA {cuda}, "
        "Triton {triton}, nvcc {nvcc}, Python {python}; commit {commit}"
    ).format(**facts)


def _driver() -> str:
    if not shutil.which("nvidia-smi"):
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0] or "unknown"


def _nvcc() -> str:
    """The version of the compiler that the build uses. build.log has its full name."""
    places = [os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin"), os.environ.get("PATH", "")]
    if not (found := shutil.which("nvcc", path=os.pathsep.join(places))):
        return "not found"
    printed = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    number = re.search(r"\bV([\d.]+)", printed)
    return number[1] if number else "unknown"


if __name__ == "__main__":
    if reason := unsupported_reason():
        sys.exit(f"make gpu: {reason}.")
    print(json.dumps(describe()))
