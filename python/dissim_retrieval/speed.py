"""A quick look at how fast this machine scores pairs, and by which way; bench/ measures in earnest."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.benchmark import Timer
from tqdm import tqdm

from dissim_kernels import available_backends, fused_dissim_score


class Speed(NamedTuple):
    """One way to score: elements |q - r| a second, in 10^9, and the largest error against float64; or why not."""

    name: str
    rate: float
    error: float
    reason: str | None = None


def environment_summary() -> str:
    """What the numbers were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} CPU threads"
    return f"{platform.machine()} {device}, {threads}, torch {torch.__version__}, Python {platform.python_version()}"


def compare_speed(
    *, queries: int = 256, gallery: int = 1024, dim: int = 256, device: str = "cpu", seconds: float = 1.0
) -> list[Speed]:
    """Time the score of all pairs, float32, by plain torch, by torch.cdist and by every backend.

    Plain torch holds queries * gallery * dim numbers. torch.cdist serves weights of one sign only, as here.
    Each result is checked against float64 before it is timed; RuntimeError where it exceeds the rounding bound.
    """
    draw = torch.Generator().manual_seed(0)
    query, reference = (torch.randn(rows, dim, generator=draw).to(device) for rows in (queries, gallery))
    weight, bias = -torch.rand(dim, generator=draw).to(device), 1.0

    def plain(query: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
        return linear((query[:, None] - reference).abs(), weight) + bias

    def fused(backend: str) -> Callable[[], Tensor]:
        return lambda: fused_dissim_score(query, reference, weight, bias, backend=backend)

    ways: dict[str, Callable[[], Tensor]] = {
        "plain torch": lambda: plain(query, reference, weight),
        "torch.cdist, p=1": lambda: bias - torch.cdist(query * -weight, reference * -weight, p=1),
        **{f"fused, {name}": fused(name) for name in available_backends()},
    }
    exact = plain(*(x.double() for x in (query, reference, weight)))
    size = (query.abs() @ -weight)[:, None] + reference.abs() @ -weight + bias  # bounds the sum of |terms|
    bound = (dim + 4) * torch.finfo(torch.float32).eps * size
    return [_measure(name, way, exact, bound, dim, seconds) for name, way in tqdm(ways.items(), "bench")]


def _measure(name: str, way: Callable[[], Tensor], exact: Tensor, bound: Tensor, dim: int, seconds: float) -> Speed:
    try:
        error = (way() - exact).abs()
    except RuntimeError as refusal:
        return Speed(name, 0.0, 0.0, str(refusal))
    if not (error <= bound).all():
        raise RuntimeError(f"{name}: wrong by {error.max():.2e}, above the rounding bound; not timed.")
    timer = Timer("way()", globals={"way": way}, num_threads=torch.get_num_threads())
    time = timer.blocked_autorange(min_run_time=seconds).median
    return Speed(name, exact.numel() * dim / time / 1e9, error.max().item())
