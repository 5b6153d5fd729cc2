"""`python -m dissim_kernels` prints versions, the backends that run on this machine, and why the others do not."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from .ops import available_backends, unavailable_backends

#: Environment variables that change what runs.
VARIABLES = ("DISSIM_ISA", "DISSIM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TRITON_INTERPRET")


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def facts() -> dict[str, str]:
    """What a bug report should contain, by heading."""
    native = torch.ops.dissim_native
    available = available_backends()
    loaded = hasattr(native, "isas")
    backends = {f"backend {name}": "available" for name in available}
    backends |= {f"backend {name}": f"not available: {reason}" for name, reason in unavailable_backends().items()}
    set_variables = sorted(f"{name}={value}" for name, value in os.environ.items() if name in VARIABLES)
    return {
        "dissim-kernels": installed("dissim-kernels"),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        "triton": installed("triton"),
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        **backends,
        "instruction set": f"{native.isa() or 'none'} (of {native.isas()})"
        if loaded
        else "none, the compiled library does not load",
        "CUDA architectures": (native.cuda_archs() or "none compiled in") if loaded else "none",
        "threads": str(torch.get_num_threads()),
        "environment": ", ".join(set_variables) or "none of the variables that change what runs is set",
    }


def main() -> None:
    rows = facts()
    width = max(map(len, rows))
    for heading, text in rows.items():
        print(f"{heading:{width}}  {text}")


if __name__ == "__main__":
    main()
