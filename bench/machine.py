"""A description of the machine, and whether it was busy."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .toolchain import compiler

PACKAGES = ("faiss-cpu", "numba", "pykeops", "scikit-learn", "scipy")


def describe() -> dict[str, object]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "isa": torch.ops.dissim_native.isa(),
        "isas": torch.ops.dissim_native.isas(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "compiler": subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout.split("\n")[0],
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: package_version(name) for name in PACKAGES},
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


def load() -> float | None:
    """The load average of the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy(machine: dict) -> str | None:
    """A warning if the machine was busy when the measurement began."""
    before = machine["load_before"]
    if before is None or before < 0.25 * machine["cores"]:
        return None
    return (
        f"the machine was busy at the start (load {before:.2f} on {machine['cores']} cores): the times are unreliable"
    )


def _cpu() -> str:
    try:
        names = [row for row in Path("/proc/cpuinfo").read_text().splitlines() if row.startswith("model name")]
        rows = dict(row.split(":", 1) for row in Path("/proc/cpuinfo").read_text().splitlines() if ":" in row)
        fields = {key.strip(): value.strip() for key, value in rows.items()}
        number = f"family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
        return f"{names[0].split(':', 1)[1].strip()} ({number})" if names else platform.processor()
    except OSError:
        return platform.processor() or platform.machine()


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The commit of this checkout by git, or "unknown"."""
    command = ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"
