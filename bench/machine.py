"""A description of the machine, and whether it was busy."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from dissim_kernels.__main__ import installed

from .toolchain import compiler

PACKAGES = ("faiss-cpu", "numba", "pykeops", "scikit-learn", "scipy")


def describe() -> dict[str, object]:
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "isa": torch.ops.dissim_native.isa(),
        "isas": torch.ops.dissim_native.isas(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "compiler": subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout.split("\n")[0],
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: installed(name) for name in PACKAGES},
        "commit": commit(),
        "load_before": load(),
    }


def environment_summary(machine: dict) -> str:
    peers = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; kernels {machine['isa']} "
        f"(of {machine['isas']}), torch {machine['torch']} {machine['torch_isa']}, {machine['compiler']}, "
        f"Python {machine['python']}, {machine['system']}; {peers}; commit {machine['commit']}"
    )


def load() -> float:
    """The load average of the last minute."""
    return os.getloadavg()[0]


def busy(machine: dict) -> str | None:
    """A warning if the machine was busy when the measurement began."""
    before = machine["load_before"]
    if before < 0.25 * machine["cores"]:
        return None
    return (
        f"the machine was busy at the start (load {before:.2f} on {machine['cores']} cores): the times are unreliable"
    )


def _cpu() -> str:
    """The name of the processor; on aarch64, where Linux knows none, the architecture."""
    rows = (row.split(":", 1) for row in Path("/proc/cpuinfo").read_text().splitlines() if ":" in row)
    fields = {key.strip(): value.strip() for key, value in rows}
    if "model name" not in fields:
        return platform.machine()
    return "{model name} (family {cpu family} model {model})".format(**fields)


def commit() -> str:
    """The commit of this checkout by git, or "unknown"."""
    command = ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"
