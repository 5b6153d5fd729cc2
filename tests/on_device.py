"""`pytest -p on_device`: runs the tests of every backend on the GPU.

The tests make tensors on the CPU. The backends "cuda" and "triton" get copies on the GPU with the same strides, and
their results are copied back. If a backend cannot run, pytest ends with the reason.
"""

from types import ModuleType

import pytest
import torch

from dissim_kernels import dispatch

FUNCTIONS = ("score", "score_backward", "topk", "hinge", "hinge_backward", "logsumexp", "logsumexp_backward", "rank",
             "listed_scores", "quantized_topk", "quantize_references")  # fmt: skip


def pytest_configure(config):
    for name in ("cuda", "triton"):
        if reason := dispatch.unavailable_backends().get(name):
            raise pytest.UsageError(f"backend {name!r} cannot run: {reason}")
        dispatch.BACKENDS[name] = moved(dispatch.BACKENDS[name], "cuda")


def moved(module, device):
    """A backend for CPU tensors that runs the backend `module` on `device`."""
    wrapper = ModuleType(module.__name__, module.__doc__)
    wrapper.unsupported_reason = lambda problem: module.unsupported_reason(
        problem._replace(device=type(problem.device)(device))
    )
    for name in FUNCTIONS:
        if hasattr(module, name):
            setattr(wrapper, name, run_on_device(getattr(module, name), device))
    return wrapper


def run_on_device(function, device):
    return lambda *arguments: move(function(*move(arguments, device)), "cpu")


def move(value, device):
    """A copy on a device: tensors with the same strides and alignment, also those in tuples and lists."""
    if isinstance(value, torch.Tensor):
        return move_tensor(value, device)
    if hasattr(value, "_fields"):
        return type(value)._make(move(part, device) for part in value)
    if isinstance(value, list | tuple):
        return type(value)(move(part, device) for part in value)
    return value


def move_tensor(tensor, device):
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    before = tensor.storage_offset() % 16  # leading elements that keep the alignment
    whole = tensor.as_strided((before + extent if tensor.numel() else 0,), (1,), tensor.storage_offset() - before)
    return whole.to(device, copy=True).as_strided(tensor.shape, tensor.stride(), before if tensor.numel() else 0)
