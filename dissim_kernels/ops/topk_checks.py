"""Checks and errors that the top-k operators share."""

from __future__ import annotations

import warnings
from typing import NoReturn

import torch
from torch import Tensor

from ..contract import raise_argument_error
from ..dispatch import last_backend
from .operator import Operator


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


def warn_of_plain_search(argument: str, reason: str) -> None:
    """Warns that the backend of this call has no search with `argument`, for a reason."""
    warnings.warn(
        f"fused_dissim_topk: backend {last_backend()!r} does not use {argument}: {reason}. "
        "It scores every reference instead, with the same result.",
        stacklevel=5,
    )


def search_function(search: Operator, argument: str) -> type[torch.autograd.Function]:
    """A Function over a search with `argument`: it raises for vmap and derivatives, which torch would treat as 0.

    Derivatives of the operator, which compiled programs call, raise as well.
    """
    search.register_autograd(raise_no_derivative)

    class Search(torch.autograd.Function):
        forward = staticmethod(search)
        backward = staticmethod(raise_no_derivative)
        jvp = staticmethod(raise_no_derivative)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.mark_non_differentiable(*output[1:])

        @staticmethod
        def vmap(info, in_dims, *args) -> NoReturn:
            raise NotImplementedError(
                f"fused_dissim_topk: vmap is not implemented with {argument}. Call it without {argument} under vmap."
            )

    return Search


def raise_no_derivative(ctx: object, *grads: object) -> NoReturn:
    raise NotImplementedError(
        "fused_dissim_topk: its scores have no derivative. "
        "Gather reference[indices] and score the rows with paired_dissim_score, or detach the scores."
    )
