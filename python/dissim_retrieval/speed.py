"""A quick comparison of methods that score all pairs on this machine. bench/ has the full benchmark."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear
from tqdm import tqdm

from dissim_kernels import available_backends, fused_dissim_score

#: For which each method is timed, at least.
SECONDS = 1.0


class Speed(NamedTuple):
    """The result of one method: rate in Gelem/s (billions of terms |q_d - r_d| per second), largest error against
    float64, and the reason if it could not run."""

    name: str
    rate: float
    error: float
    reason: str | None = None


def environment_summary() -> str:
    """The machine and the versions, for use next to measurements."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} CPU threads"
    return f"{platform.machine()} {device}, {threads}, torch {torch.__version__}, Python {platform.python_version()}"


def compare_speed(*, queries: int, gallery: int, dim: int, device: str = "cpu") -> list[Speed]:
    """Time the score of all pairs, float32, by plain torch, by torch.cdist and by every backend.

    Plain torch stores queries * gallery * dim numbers. torch.cdist supports weights of one sign only, as used here.
    Each result is compared with float64 before it is timed; RuntimeError if the error exceeds the rounding bound.
    """
    draw = torch.Generator().manual_seed(0)
    query, reference = (torch.randn(rows, dim, generator=draw).to(device) for rows in (queries, gallery))
    weight, bias = -torch.rand(dim, generator=draw).to(device), 1.0

    def plain(query: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
        return linear((query[:, None] - reference).abs(), weight) + bias

    def fused(backend: str) -> Callable[[], Tensor]:
        return lambda: fused_dissim_score(query, reference, weight, bias, backend=backend)

    methods: dict[str, Callable[[], Tensor]] = {
        "plain torch": lambda: plain(query, reference, weight),
        "torch.cdist, p=1": lambda: bias - torch.cdist(query * -weight, reference * -weight, p=1),
        **{f"fused, {name}": fused(name) for name in available_backends()},
    }
    exact = plain(*(x.double() for x in (query, reference, weight)))
    size = (query.abs() @ -weight)[:, None] + reference.abs() @ -weight + bias  # bounds the sum of |terms|
    bound = (dim + 4) * torch.finfo(torch.float32).eps * size
    return [
        _measure(name, method, exact, bound, dim) for name, method in tqdm(methods.items(), "bench", disable=None)
    ]


def _measure(name: str, method: Callable[[], Tensor], exact: Tensor, bound: Tensor, dim: int) -> Speed:
    try:
        error = (method() - exact).abs()
    except RuntimeError as reason:
        return Speed(name, 0.0, 0.0, str(reason))
    if not (error <= bound).all():
        raise RuntimeError(f"{name}: wrong by {error.max():.2e}, above the rounding bound; not timed.")
    from torch.utils.benchmark import Timer  # here, because it takes a second to import

    timer = Timer("method()", globals={"method": method}, num_threads=torch.get_num_threads())
    time = timer.blocked_autorange(min_run_time=SECONDS).median
    return Speed(name, exact.numel() * dim / time / 1e9, error.max().item())
