"""The operator behind `fused_dissim_topk(..., clusters=)`: a search that omits clusters by bounds (E17)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import Problem, TopKArguments, raise_argument_error
from ..dispatch import resolve
from ..operands import check_topk_operands
from .clusters import (
    REMEDY,
    ClusteredReferences,
    check_clusters,
    check_clusters_offsets,
    check_clusters_weight,
    check_sizes,
)
from .operator import operator
from .topk_checks import check_enough_candidates, check_k, is_capturing, search_function, warn_of_plain_search


def _check_operands(query, reference, *others):
    """The arguments of top-k, then the tensors of a `ClusteredReferences`, its number of rows and the backend."""
    *topk_operands, clusters, rows, _ = others
    check_topk_operands(query, reference, *topk_operands)
    check_sizes(reference)
    if len(clusters) != len(ClusteredReferences._fields) - 1:
        raise_argument_error("clusters", "the tensors of a ClusteredReferences", f"{len(clusters)} tensors", REMEDY)
    check_clusters(ClusteredReferences._make([*clusters, rows]), reference)


@operator("dissim::clustered_topk", _check_operands)
def clustered_topk(
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
    clusters: Sequence[Tensor],
    rows: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    check_k(k, reference)
    given = ClusteredReferences._make([*clusters, rows])
    can_read = not is_capturing(query)
    if can_read:
        check_clusters_weight(given, weight)
    filters = (exclude_index, query_labels, reference_labels, among)
    search = TopKArguments(query, reference, weight, bias, k, largest, *filters)
    module = resolve(backend, Problem("topk", query.device))
    reason = module.unsupported_reason(Problem("clustered_topk", query.device))
    if reason is None:
        try:
            scores, indices, scored = module.clustered_topk(search, clusters)
        except RuntimeError:
            check_clusters_offsets(given)  # the kernel checks them, too: without the time of torch's operators
            raise
        if len(scored) and scored[0].item() < 0:
            raise_argument_error("clusters", "the clusters of these references", "others or damaged ones", REMEDY)
    else:
        if can_read:
            check_clusters_offsets(given)
        warn_of_plain_search("clusters", reason)
        scores, indices = module.topk(search)
        scored = torch.full((query.shape[0],), reference.shape[0], device=query.device)
    if exclude_index is not None or query_labels is not None:
        check_enough_candidates(indices, k)
    return scores.to(query.dtype), indices, scored


@clustered_topk.register_fake
def _(
    query, reference, weight, bias, k, largest, exclude_index, query_labels, reference_labels, among, clusters, rows,
    backend,
):  # fmt: skip
    scores = query.new_empty(query.shape[0], k)
    scored = query.new_empty(query.shape[0], dtype=torch.int64)
    return scores, torch.empty_like(scores, dtype=torch.int64), scored


ClusteredTopKFunction = search_function(clustered_topk, "clusters")
