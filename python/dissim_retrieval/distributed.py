"""Batches of several processes as one: embeddings gathered with gradient, in rank order.

Each process computes the loss of its own rows against the rows of all (`gather_references`), so the scores of the
whole batch are computed once, not once on each process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .references import References


def gather_references(embeddings: Tensor, labels: Tensor) -> References:
    """The batches of all processes, for a loss: embeddings [B, D] and labels int64 [B] of this process.

    Without a process group (torch.distributed is not initialized) these are just this process's. Every process must
    call it in the same step, with the same B and D; otherwise ValueError on all of them.

    >>> gather_references(torch.eye(2), torch.tensor([0, 1])).first_row
    0
    """
    processes = world_size()
    if processes == 1:
        return References(embeddings, labels)
    _check_equal_shapes(embeddings)
    return References(gather(embeddings), _all_gather(labels), first_row=dist.get_rank() * len(embeddings))


def gather(rows: Tensor) -> Tensor:
    """[B, ...] of every process -> [processes * B, ...] in rank order, with gradient.

    The gradient of this process's rows is the sum of their gradients on all processes. Without a process group, the
    result is `rows` itself. Every process must call this and the backward pass through it; otherwise the others wait.
    """
    return rows if world_size() == 1 else _Gather.apply(rows)


def world_size() -> int:
    """The number of processes: 1 unless torch.distributed is initialized."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """All-gather whose backward is the matching reduction. torch.distributed.nn's is deprecated as of torch 2.13."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        return _all_gather(rows)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank() * ctx.count :][: ctx.count]


def _all_gather(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def _check_equal_shapes(embeddings: Tensor) -> None:
    shapes = _all_gather(torch.tensor([embeddings.shape], device=embeddings.device)).tolist()
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"embeddings: expected the same shape on every process, got {shapes} in rank order. Give each process "
            "batches of one size: drop the last, smaller batch."
        )
