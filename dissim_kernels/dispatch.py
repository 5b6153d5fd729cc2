"""The choice of a backend for a call: the table of backends, their order, and a record of the last one used."""

from __future__ import annotations

import threading
from types import ModuleType

import torch

from .backends import cuda, native, reference, triton
from .contract import Problem, raise_argument_error

#: Every backend by name. A new one needs a module, a row here and a place in AUTO.
BACKENDS: dict[str, ModuleType] = {"cpu": native, "cuda": cuda, "triton": triton, "reference": reference}

#: The backends that "auto" tries for a device, in order. A device without a row uses the slow reference. A device
#: with a row never does: if its backends fail, for example because of a failed build, the call raises.
AUTO = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}

_last = threading.local()


def check_backend(name: object) -> None:
    if not isinstance(name, str) or (name != "auto" and name not in BACKENDS):
        raise_argument_error(
            "backend", "'auto' or one of " + ", ".join(map(repr, BACKENDS)), repr(name), "Choose one of these."
        )


def resolve(name: str, problem: Problem) -> ModuleType:
    """The module of the named backend; for "auto", of the first that supports the problem. Raises if none does."""
    check_backend(name)
    candidates = AUTO.get(problem.device.type, ("reference",)) if name == "auto" else (name,)
    reasons = {}
    for candidate in candidates:
        reasons[candidate] = BACKENDS[candidate].unsupported_reason(problem)
        if reasons[candidate] is None:
            _last.name = candidate
            return BACKENDS[candidate]
    raise RuntimeError(
        "; ".join(f"backend {candidate!r} cannot run this call: {reason}" for candidate, reason in reasons.items())
    )


def available_backends() -> list[str]:
    """The names of the backends that can compute a score on this machine, on the CPU or on a CUDA device.

    `unavailable_backends` returns the others with reasons.

    >>> "reference" in available_backends()
    True
    """
    reasons = unavailable_backends()
    return [name for name in BACKENDS if name not in reasons]


def unavailable_backends() -> dict[str, str]:
    """Each backend that runs on no device of this machine, with the reason.

    `python -m dissim_kernels` prints them.

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
    """The name of the backend that ran this thread's last call. Raises RuntimeError if there was none."""
    if not hasattr(_last, "name"):
        raise RuntimeError("last_backend: no dissim operator has run in this thread yet.")
    return _last.name
