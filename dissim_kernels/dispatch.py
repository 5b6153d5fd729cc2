"""Which backend runs a call: one ordered table, reasons in words, and a record of what ran."""

from __future__ import annotations

import threading
from types import ModuleType

import torch

from .backends import cuda, native, reference, triton
from .contract import Problem, raise_argument_error

#: Every backend by name. A new one is one module, one row here and its place in AUTO.
BACKENDS: dict[str, ModuleType] = {"cpu": native, "cuda": cuda, "triton": triton, "reference": reference}

#: What "auto" tries for a device, in order. The slow reference stands in where there are no kernels for a device;
#: it never stands in for a failed build.
AUTO = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}

_ran = threading.local()


def check_backend(name: str) -> None:
    if name != "auto" and name not in BACKENDS:
        raise_argument_error(
            "backend", "'auto' or one of " + ", ".join(map(repr, BACKENDS)), repr(name), "Choose one of these."
        )


def resolve(name: str, problem: Problem) -> ModuleType:
    """The backend module for a problem: the named one, or for "auto" the first that can; else raises the reasons."""
    check_backend(name)
    candidates = AUTO.get(problem.device.type, ("reference",)) if name == "auto" else (name,)
    reasons = {}
    for candidate in candidates:
        reasons[candidate] = BACKENDS[candidate].unsupported_reason(problem)
        if reasons[candidate] is None:
            _ran.name = candidate
            return BACKENDS[candidate]
    raise RuntimeError("; ".join(f"backend {row!r} cannot run this call: {why}" for row, why in reasons.items()))


def available_backends() -> list[str]:
    """The backends that run on this machine: a score, on the CPU or on a CUDA device.

    `unavailable_backends` has the others.

    >>> "reference" in available_backends()
    True
    """
    reasons = unavailable_backends()
    return [name for name in BACKENDS if name not in reasons]


def unavailable_backends() -> dict[str, str]:
    """Each backend that runs on no device of this machine, and the reason; on several devices, that of the last.

    `python -m dissim_kernels` prints it.

    >>> set(unavailable_backends()).isdisjoint(available_backends())
    True
    """
    cuda_devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    devices = [torch.device("cpu"), *(torch.device("cuda", index) for index in cuda_devices)]
    problems = [Problem("score", device) for device in devices]
    unavailable = {}
    for name, module in BACKENDS.items():
        reasons = [module.unsupported_reason(problem) for problem in problems]
        if None not in reasons:
            unavailable[name] = reasons[-1]
    return unavailable


def last_backend() -> str:
    """The backend that ran this thread's last call; an error if there was none."""
    if not hasattr(_ran, "name"):
        raise RuntimeError("last_backend: no dissim operator has run in this thread yet.")
    return _ran.name
