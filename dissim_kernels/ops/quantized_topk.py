"""The operator behind `fused_dissim_topk(..., quantized=)`: a scan over 8-bit codes with error bounds (E10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import Problem, TopKArguments, raise_argument_error
from ..dispatch import resolve
from ..operands import check_topk_operands
from .operator import operator
from .quantize import REMEDY, QuantizedReferences, check_quantized, check_quantized_values, check_sizes
from .topk_checks import check_enough_candidates, check_k, is_capturing, search_function, warn_of_plain_search


def _check_operands(query, reference, *others):
    """The arguments of top-k, then the tensors of a `QuantizedReferences`, its number of rows and the backend."""
    *topk_operands, codes, rows, _ = others
    check_topk_operands(query, reference, *topk_operands)
    check_sizes(reference)
    if len(codes) != len(QuantizedReferences._fields) - 1:
        raise_argument_error("codes", "the tensors of a QuantizedReferences", f"{len(codes)} tensors", REMEDY)
    check_quantized(QuantizedReferences._make([*codes, rows]), reference)


@operator("dissim::quantized_topk", _check_operands)
def quantized_topk(
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
    codes: Sequence[Tensor],
    rows: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    check_k(k, reference)
    if not is_capturing(query):
        check_quantized_values(QuantizedReferences._make([*codes, rows]), weight)
    filters = (exclude_index, query_labels, reference_labels, among)
    search = TopKArguments(query, reference, weight, bias, k, largest, *filters)
    module = resolve(backend, Problem("topk", query.device))
    reason = module.unsupported_reason(Problem("quantized_topk", query.device))
    if reason is None:
        scores, indices, rescored = module.quantized_topk(search, codes)
    else:
        warn_of_plain_search("quantized", reason)
        scores, indices = module.topk(search)
        rescored = torch.full((query.shape[0],), reference.shape[0], device=query.device)
    if exclude_index is not None or query_labels is not None:
        check_enough_candidates(indices, k)
    return scores.to(query.dtype), indices, rescored


@quantized_topk.register_fake
def _(
    query, reference, weight, bias, k, largest, exclude_index, query_labels, reference_labels, among, codes, rows,
    backend,
):  # fmt: skip
    scores = query.new_empty(query.shape[0], k)
    rescored = query.new_empty(query.shape[0], dtype=torch.int64)
    return scores, torch.empty_like(scores, dtype=torch.int64), rescored


QuantizedTopKFunction = search_function(quantized_topk, "quantized")
