"""The k best references of every query: the public function and the operator that scores every reference."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from ..contract import Search, check_count, check_filters, check_matrix_inputs, check_topk_operands
from ..dispatch import check_backend, resolve
from .operator import differentiated, operator
from .quantize import QuantizedReferences, check_quantized
from .quantized_topk import QuantizedTopKFunction, quantized_topk
from .score import autocast_to_float32, each_entry, head_bias, problem_of
from .topk_checks import check_enough_candidates, check_k, raise_no_derivative


class TopK(NamedTuple):
    """scores [N, k] in the embeddings' dtype and indices [N, k] int64, best first."""

    scores: Tensor
    indices: Tensor


class TopKStats(NamedTuple):
    """A `TopK` and, for each query, how many references were scored in full precision: rescored [N] int64."""

    scores: Tensor
    indices: Tensor
    rescored: Tensor


@overload
def fused_dissim_topk(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | float | None = ...,
    *,
    k: int,
    largest: bool = ...,
    exclude_index: Tensor | None = ...,
    query_labels: Tensor | None = ...,
    reference_labels: Tensor | None = ...,
    quantized: QuantizedReferences | None = ...,
    return_stats: Literal[False] = ...,
    backend: str = ...,
) -> TopK: ...


@overload
def fused_dissim_topk(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | float | None = ...,
    *,
    k: int,
    largest: bool = ...,
    exclude_index: Tensor | None = ...,
    query_labels: Tensor | None = ...,
    reference_labels: Tensor | None = ...,
    quantized: QuantizedReferences | None = ...,
    return_stats: Literal[True],
    backend: str = ...,
) -> TopKStats: ...


def fused_dissim_topk(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | float | None = None,
    *,
    k: int,
    largest: bool = True,
    exclude_index: Tensor | None = None,
    query_labels: Tensor | None = None,
    reference_labels: Tensor | None = None,
    quantized: QuantizedReferences | None = None,
    return_stats: bool = False,
    backend: str = "auto",
) -> TopK | TopKStats:
    """The k best-scoring references of each query, exactly, without the N x M score matrix.

    Plain torch, but for ties and NaN::

        fused_dissim_score(query, reference, weight, bias).topk(k, largest=largest)

    query [N, D], reference [M, D], weight [D], bias a number or 0-d tensor, dtypes as in `fused_dissim_score`.
    Best first; equal scores by lower index; a NaN score never outranks a number. For half precision the order
    is that of the float32 scores, the returned scores are rounded.

    Args:
        exclude_index: int64 [N], a reference row that each query must not return, -1 for none (itself, for one).
        query_labels, reference_labels: int64 [N] and [M]; references of the query's own label are excluded, which
            is hard-negative mining.
        quantized: what `quantize_references(reference, weight)` returned. A scan over its 8-bit codes bounds every
            score (E10), and only references that may be among the k best are scored in full precision. Scores and
            indices are bit-identical to those without it. It pays where few references are close to the best; data
            on which all are close takes longer than without it. Where the backend has no such scan (triton,
            reference), a warning says why and every reference is scored.
        return_stats: return `TopKStats`. Its rescored counts, for each query, the references whose bound reaches
            the k-th best score, on CUDA a score slightly below it; M where every reference was scored.

    A derivative raises NotImplementedError, and so does vmap with quantized. To train through the result, gather
    the rows and score them with `paired_dissim_score`.

    Cost: that of the score, and of a sort of k. With quantized: N M D steps on bytes (with AVX2 two instructions do
    32 of them, where three do 8 of a float32 score; on CUDA one does 4, where two do 1), and the re-scored rows.

    Memory on the CPU: the result, for half types once more in float32, and at most 2(N + M)D values and 16 MiB, or
    16 k bytes if these are more; on GPUs the result and a block of scores, on CUDA lists of 1.25 k + 32 candidates a
    query, or more of them up to 1 GiB. With quantized besides, on the CPU: the codes of the queries and at most
    32 MiB of candidates, or 48 k bytes if these are more; on CUDA at most 64 MiB of bounds and candidates, or what
    128 queries need, a byte for each 4 references and some for each of k.

    Raises ValueError when k is above M, before anything is allocated, when a query has fewer than k candidates, or
    for `quantized` of other weights, another number of references, another device, or damaged: each tensor's dtype,
    shape, contiguity and the range of dim_order are checked, codes and error bounds are not. Other errors as in
    `fused_dissim_score`. On CUDA the count of candidates, where a filter is given, and the check of the weights and
    dim_order of `quantized` wait for the device. Both are left out while a graph is captured: places without a
    candidate then hold index -1.

    >>> import torch
    >>> from dissim_kernels import quantize_references
    >>> query, reference, weight = torch.zeros(1, 2), torch.eye(3)[:, :2], torch.tensor([-1.0, -2.0])
    >>> fused_dissim_topk(query, reference, weight, k=2).indices
    tensor([[2, 0]])
    >>> quantized = quantize_references(reference, weight)
    >>> fused_dissim_topk(query, reference, weight, k=2, quantized=quantized).indices
    tensor([[2, 0]])
    """
    check_backend(backend)
    query, reference, weight, bias = autocast_to_float32(query, reference, weight, bias)
    check_matrix_inputs(query, reference, weight, bias)
    check_count("k", k, 0)
    check_filters(query, reference, exclude_index, query_labels, reference_labels)
    if quantized is not None:
        check_quantized(quantized, reference)
    tensors = [query, reference, weight, head_bias(bias, weight)]
    if torch.compiler.is_compiling():
        tensors = [t if t is None else t.detach() for t in tensors]
    arguments = (*tensors, k, largest, exclude_index, query_labels, reference_labels)
    may_differentiate = differentiated(*tensors)
    if quantized is None:
        run = _TopKFunction.apply if may_differentiate else topk
        scores, indices = run(*arguments, backend)
        rescored = None
    else:
        *codes, rows = quantized
        run = QuantizedTopKFunction.apply if may_differentiate else quantized_topk
        scores, indices, rescored = run(*arguments, codes, rows, backend)
    if not return_stats:
        return TopK(scores, indices)
    if rescored is None:
        rescored = torch.full((query.shape[0],), reference.shape[0], device=query.device)
    return TopKStats(scores, indices, rescored)


@operator("dissim::topk", check_topk_operands)
def topk(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int,
    largest: bool,
    exclude_index: Tensor | None,
    query_labels: Tensor | None,
    reference_labels: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    check_k(k, reference)
    module = resolve(backend, problem_of("topk", query))
    filters = (exclude_index, query_labels, reference_labels)
    scores, indices = module.topk(Search(query, reference, weight, bias, k, largest, *filters))
    if exclude_index is not None or query_labels is not None:
        check_enough_candidates(indices, k)
    return scores.to(query.dtype), indices


@topk.register_fake
def _(query, reference, weight, bias, k, largest, exclude_index, query_labels, reference_labels, backend):
    scores = query.new_empty(query.shape[0], k)
    return scores, torch.empty_like(scores, dtype=torch.int64)


topk.register_vmap(each_entry(topk))


class _TopKFunction(torch.autograd.Function):
    """Raises for derivatives, where torch alone would take them for zero."""

    generate_vmap_rule = True
    forward = staticmethod(topk)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, *grads):
        raise_no_derivative()

    @staticmethod
    def jvp(ctx, *tangents):
        raise_no_derivative()
