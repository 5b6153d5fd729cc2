"""Checks and errors that the two top-k operators share."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from ..contract import raise_argument_error


def check_k(k: int, reference: Tensor) -> None:
    """Raises for k above M, before anything is allocated.

    The operator calls it, because M may not be known when a program is traced.
    """
    if k > reference.shape[0]:
        raise_argument_error("k", f"at most the {reference.shape[0]} rows of reference", k, "Use a smaller k.")


def is_capturing(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured, during which no value can be read."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def check_enough_candidates(indices: Tensor, k: int) -> None:
    """Raises for the first query with fewer than k candidates, which has -1 in its last places."""
    if is_capturing(indices):
        return
    if k and indices.numel() and bool((indices[:, -1] < 0).any()):
        row = int((indices[:, -1] < 0).nonzero()[0])
        candidates = int((indices[row] >= 0).sum())
        raise_argument_error("k", f"at most the {candidates} candidates of query row {row}", k, "Use a smaller k.")


def raise_no_derivative() -> NoReturn:
    raise NotImplementedError(
        "fused_dissim_topk: its scores have no derivative. "
        "Gather reference[indices] and score the rows with paired_dissim_score, or detach the scores."
    )
