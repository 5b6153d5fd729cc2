"""`pytest -p on_device`: the tests of every backend on the GPU. They make tensors on the CPU; the backends "cuda" and
"triton" get copies of them on the device, as they lie in memory, and their results come back.

A backend that cannot run ends pytest with its reason.
"""

from types import ModuleType

import pytest
import torch

from dissim_kernels import dispatch

FUNCTIONS = ("score", "score_backward", "topk", "hinge", "hinge_backward", "quantized_topk", "quantize_references")


def pytest_configure(config):
    for name in ("cuda", "triton"):
        if reason := dispatch.unavailable_backends().get(name):
            raise pytest.UsageError(f"backend {name!r} cannot run: {reason}")
        dispatch.BACKENDS[name] = moved(dispatch.BACKENDS[name], "cuda")


def moved(module, device):
    """The backend `module`, whose tensors are on `device`, as a backend of tensors on the CPU."""
    found = ModuleType(module.__name__, module.__doc__)
    found.unsupported_reason = lambda problem: module.unsupported_reason(
        problem._replace(device=type(problem.device)(device))
    )
    for name in FUNCTIONS:
        if hasattr(module, name):
            setattr(found, name, there_and_back(getattr(module, name), device))
    return found


def there_and_back(function, device):
    return lambda *arguments: move(function(*move(arguments, device)), "cpu")


def move(value, device):
    """The same on a device: tensors with their strides and alignment, within tuples and lists too."""
    if isinstance(value, torch.Tensor):
        return move_tensor(value, device)
    if hasattr(value, "_fields"):
        return type(value)._make(move(part, device) for part in value)
    if isinstance(value, list | tuple):
        return type(value)(move(part, device) for part in value)
    return value


def move_tensor(tensor, device):
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    before = tensor.storage_offset() % 16  # elements that keep what follows as far from a boundary
    whole = tensor.as_strided((before + extent if tensor.numel() else 0,), (1,), tensor.storage_offset() - before)
    return whole.to(device, copy=True).as_strided(tensor.shape, tensor.stride(), before if tensor.numel() else 0)
