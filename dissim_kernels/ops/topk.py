"""The k best references of every query: the public function and the operator that scores every reference."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from ..contract import (
    Problem,
    TopKArguments,
    check_among,
    check_count,
    check_filters,
    check_flag,
    check_matrix_inputs,
    raise_argument_error,
)
from ..dispatch import check_backend, resolve
from ..operands import check_topk_operands
from .arguments import autocast_to_float32, head_bias
from .clustered_topk import ClusteredTopKFunction, clustered_topk
from .clusters import ClusteredReferences, check_clusters
from .operator import call, operator, vmap_by_loop
from .quantize import QuantizedReferences, check_quantized
from .quantized_topk import QuantizedTopKFunction, quantized_topk
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
    among: str = ...,
    quantized: QuantizedReferences | None = ...,
    clusters: ClusteredReferences | None = ...,
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
    among: str = ...,
    quantized: QuantizedReferences | None = ...,
    clusters: ClusteredReferences | None = ...,
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
    among: str = "different",
    quantized: QuantizedReferences | None = None,
    clusters: ClusteredReferences | None = None,
    return_stats: bool = False,
    backend: str = "auto",
) -> TopK | TopKStats:
    """The k best-scoring references of each query, exactly, without the N x M score matrix.

    Plain torch, except for the order of ties and NaN::

        fused_dissim_score(query, reference, weight, bias).topk(k, largest=largest)

    query [N, D], reference [M, D], weight [D], bias a number or 0-d tensor, dtypes as in `fused_dissim_score`.
    Results are ordered best first; ties by lower index; a NaN score comes after every number. For half precision the
    order is that of the float32 scores, and the returned scores are rounded.

    Args:
        exclude_index: int64 [N], for each query a reference row that must not be returned (for example the query
            itself), -1 for none.
        query_labels, reference_labels: int64 [N] and [M], or neither: then all references are candidates.
        among: which references are candidates, by label: "different", those of another label than the query's, as in
            hard-negative mining; "same", those of its label; "all". The hardest positives are those with the smallest
            scores: among="same", largest=False, and exclude_index for the query itself.
        quantized: the result of `quantize_references(reference, weight)`. A scan over its 8-bit codes bounds every
            score (E10), and only references that may be among the k best are scored in full precision. Scores and
            indices are bit-identical to those without it. The search is faster if few references score close to the
            best, and slower if most do. A backend without such a scan (triton, reference) warns with the reason and
            scores every reference.
        clusters: the result of `cluster_references(reference, weight)`, in place of quantized. Bounds of whole
            clusters (E17) exclude most references if these are clustered and k is below M / 128. Scores and indices
            are bit-identical to those without it. If nothing can be excluded, every reference is scored. Only the
            backend cpu has such a search; the others warn with the reason and score every reference.
        return_stats: return `TopKStats`. Its `rescored` counts, for each query, the references whose bound reaches
            the k-th best score (on CUDA: a score slightly below it), or with clusters those that were scored. It is
            M if every reference was scored.

    A derivative raises NotImplementedError, and so does vmap with quantized or clusters. To train through the result,
    gather the rows and score them with `paired_dissim_score`. torch.compile traces the backward pass in advance: if
    an input requires a gradient, a program that returns or uses scores without detaching them raises at its first
    call.

    Cost: that of the score, and a sort of k. With quantized: N M D operations on bytes, and the scores of the
    references that are rescored. With clusters: the scores of the pivots, and of the references that are not
    excluded.

    Memory on the CPU: the result (for half types once more in float32) and at most 2(N + M)D values and 16 MiB, or
    16 k bytes if that is more. On GPUs: the result and a block of scores; CUDA also needs lists of 1.25 k + 32
    candidates per query, or longer ones up to 1 GiB. With quantized, in addition, on the CPU: the codes of the
    queries and at most 32 MiB of candidates, or 48 k bytes if that is more; on CUDA: at most 64 MiB of bounds and
    candidates, or what 128 queries need (one byte per 4 references, and some bytes per place in k). With clusters, on
    the CPU: a fourth more, for the scores of the pivots.

    Raises ValueError if k is above M (before anything is allocated), if a query has fewer than k candidates, or if
    `quantized` or `clusters` belongs to other weights, another number of references or another device, or is damaged.
    Each tensor's dtype, shape and contiguity and the range of row and column numbers are checked; codes, error bounds
    and radii are not. Other errors as in `fused_dissim_score`. On CUDA, two checks wait for the device: the count of
    candidates if a filter is given, and the values of `quantized` or `clusters`. Both are skipped while a CUDA graph
    is captured; if a query has fewer than k candidates, its last indices are then -1.

    >>> import torch
    >>> from dissim_kernels import quantize_references
    >>> query, reference, weight = torch.zeros(1, 2), torch.eye(3)[:, :2], torch.tensor([-1.0, -2.0])
    >>> fused_dissim_topk(query, reference, weight, k=2).indices
    tensor([[2, 0]])
    >>> quantized = quantize_references(reference, weight)
    >>> fused_dissim_topk(query, reference, weight, k=2, quantized=quantized).indices
    tensor([[2, 0]])

    The hardest positive, the worst of the references 0 and 2:

    >>> labels = {"query_labels": torch.tensor([7]), "reference_labels": torch.tensor([7, 8, 7])}
    >>> fused_dissim_topk(query, reference, weight, k=1, **labels, among="same", largest=False).indices
    tensor([[0]])
    """
    check_backend(backend)
    query, reference, weight, bias = autocast_to_float32(query, reference, weight, bias)
    check_matrix_inputs(query, reference, weight, bias)
    check_count("k", k, 0)
    check_flag("largest", largest)
    check_flag("return_stats", return_stats)
    check_filters(query, reference, exclude_index, query_labels, reference_labels)
    check_among(among, query_labels, ("same",))
    if quantized is not None:
        check_quantized(quantized, reference)
    if clusters is not None:
        if isinstance(clusters, ClusteredReferences):
            clusters = clusters._replace(pivots=autocast_to_float32(clusters.pivots)[0])
        check_clusters(clusters, reference)
        if quantized is not None:
            raise_argument_error("clusters", "None, since quantized is given", "both", "Pass one of them.")
    bias = head_bias(bias, weight)
    arguments = (query, reference, weight, bias, k, largest, exclude_index, query_labels, reference_labels, among)
    if quantized is not None:
        *codes, rows = quantized
        scores, indices, rescored = call(QuantizedTopKFunction, quantized_topk, *arguments, codes, rows, backend)
    elif clusters is not None:
        *tensors, rows = clusters
        scores, indices, rescored = call(ClusteredTopKFunction, clustered_topk, *arguments, tensors, rows, backend)
    else:
        scores, indices = call(_TopKFunction, topk, *arguments, backend)
        rescored = None
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
    among: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    check_k(k, reference)
    module = resolve(backend, Problem("topk", query.device))
    filters = (exclude_index, query_labels, reference_labels, among)
    scores, indices = module.topk(TopKArguments(query, reference, weight, bias, k, largest, *filters))
    if exclude_index is not None or query_labels is not None:
        check_enough_candidates(indices, k)
    return scores.to(query.dtype), indices


@topk.register_fake
def _(query, reference, weight, bias, k, largest, exclude_index, query_labels, reference_labels, among, backend):
    scores = query.new_empty(query.shape[0], k)
    return scores, torch.empty_like(scores, dtype=torch.int64)


topk.register_autograd(raise_no_derivative)
topk.register_vmap(vmap_by_loop(topk))


class _TopKFunction(torch.autograd.Function):
    """Raises for derivatives, which torch would treat as zero."""

    generate_vmap_rule = True
    forward = staticmethod(topk)
    backward = staticmethod(raise_no_derivative)
    jvp = staticmethod(raise_no_derivative)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
