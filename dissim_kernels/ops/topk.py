"""The k best references of every query: the door and the operator. Scores are selected as they are computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..contract import Search, check_count, check_filters, check_matrix_inputs, check_topk_operands, refuse
from ..dispatch import check_backend, resolve
from .operator import differentiated, operator
from .score import autocast_to_float32, each_entry, head_bias, problem_of


class TopK(NamedTuple):
    """scores [N, k] in the embeddings' dtype and indices [N, k] int64, best first."""

    scores: Tensor
    indices: Tensor


def fused_dissim_topk(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | float | None = None,
    *,
    k: int,
    largest: bool = True,
    exclude: Tensor | None = None,
    query_labels: Tensor | None = None,
    reference_labels: Tensor | None = None,
    backend: str = "auto",
) -> TopK:
    """The k best-scoring references of each query, exactly, without the N x M score matrix.

    Plain torch, but for ties and NaN::

        fused_dissim_score(query, reference, weight, bias).topk(k, largest=largest)

    query [N, D], reference [M, D], weight [D], bias a number or 0-d tensor, dtypes as in `fused_dissim_score`.
    Best first; equal scores by lower index; a NaN score never outranks a number. For half precision the order
    is that of the float32 scores, the returned scores are rounded.

    Args:
        exclude: int64 [N], a reference row each query must not return, -1 for none (itself, for one).
        query_labels, reference_labels: int64 [N] and [M]; references of the query's own label are excluded, which
            is hard-negative mining.

    A derivative raises NotImplementedError: to train through the result, gather the rows and score them with
    `paired_dissim_score`.

    Cost: that of the score, and of a sort of k. Memory on the CPU: the result, for half types once more in float32,
    and at most 2(N + M)D values and 16 MiB, or 16 k bytes if these are more; on GPUs the result and a block of
    scores, on CUDA lists of 1.25 k + 32 candidates a query, or more of them up to 1 GiB. Raises ValueError when k is
    above M, before anything is allocated, or when a query has fewer than k candidates; other errors as in
    `fused_dissim_score`. On CUDA the count of candidates waits for the result where a filter is given, and is left
    out while a graph is captured: places without a candidate then hold index -1.

    >>> import torch
    >>> found = fused_dissim_topk(torch.zeros(1, 2), torch.eye(3)[:, :2], torch.tensor([-1.0, -2.0]), k=2)
    >>> found.indices
    tensor([[2, 0]])
    """
    check_backend(backend)
    query, reference, weight, bias = autocast_to_float32(query, reference, weight, bias)
    check_matrix_inputs(query, reference, weight, bias)
    check_count("k", k, 0)
    check_filters(query, reference, exclude, query_labels, reference_labels)
    bias = head_bias(bias, weight)
    tensors = [query, reference, weight, bias]
    if torch.compiler.is_compiling():
        tensors = [t if t is None else t.detach() for t in tensors]
    call = _TopK.apply if differentiated(*tensors) else topk
    return TopK(*call(*tensors, k, largest, exclude, query_labels, reference_labels, backend))


@operator("dissim::topk", check_topk_operands)
def topk(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int,
    largest: bool,
    exclude: Tensor | None,
    query_labels: Tensor | None,
    reference_labels: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    check_k(k, reference)
    module = resolve(backend, problem_of("topk", query))
    filters = (exclude, query_labels, reference_labels)
    scores, indices = module.topk(Search(query, reference, weight, bias, k, largest, *filters))
    if exclude is not None or query_labels is not None:
        refuse_too_few(indices, k)
    return scores.to(query.dtype), indices


def check_k(k: int, reference: Tensor) -> None:
    """Before anything is allocated; by the operators, since a traced program need not know its number of rows."""
    if k > reference.shape[0]:
        refuse("k", f"at most the {reference.shape[0]} rows of reference", k, "Ask for fewer.")


def being_captured(tensor: Tensor) -> bool:
    """Whether a CUDA graph is captured, so that nothing can be read."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def refuse_too_few(indices: Tensor, k: int) -> None:
    """Raises for the first query whose candidates ran out."""
    if being_captured(indices):
        return
    if k and indices.numel() and bool((indices[:, -1] < 0).any()):
        row = int((indices[:, -1] < 0).nonzero()[0])
        candidates = int((indices[row] >= 0).sum())
        refuse("k", f"at most the {candidates} candidates of query row {row}", k, "Ask for fewer.")


@topk.register_fake
def _(query, reference, weight, bias, k, largest, exclude, query_labels, reference_labels, backend):
    scores = query.new_empty(query.shape[0], k)
    return scores, torch.empty_like(scores, dtype=torch.int64)


topk.register_vmap(each_entry(topk))


class _TopK(torch.autograd.Function):
    """Gives no derivative, and says so where torch alone would take it for zero."""

    generate_vmap_rule = True
    forward = staticmethod(topk)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, *grads):
        _refuse()

    @staticmethod
    def jvp(ctx, *tangents):
        _refuse()


def _refuse() -> None:
    raise NotImplementedError(
        "fused_dissim_topk: its scores have no derivative. "
        "Gather reference[indices] and score the rows with paired_dissim_score, or detach the scores."
    )
