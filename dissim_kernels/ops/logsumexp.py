"""The log-sum-exp of each query's scores: the public function."""

from __future__ import annotations

from torch import Tensor

from ..contract import ACCUMULATE, check_among, check_filters, check_matrix_inputs, check_scale
from ..dispatch import check_backend
from .arguments import autocast_to_float32, constant, head_bias
from .logsumexp_operators import LogSumExpFunction, logsumexp
from .operator import call


def fused_dissim_logsumexp(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | float | None = None,
    *,
    scale: Tensor | float = 1.0,
    query_labels: Tensor | None = None,
    reference_labels: Tensor | None = None,
    among: str = "different",
    exclude_index: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The log-sum-exp of each query's scores, without the N x M matrix: [N] in the accumulator dtype.

    Plain torch, with `kept` the pairs that count by `among` and `exclude_index` (E15)::

        scores = fused_dissim_score(query, reference, weight, bias)
        torch.where(kept, scale * scores, -torch.inf).logsumexp(1)

    InfoNCE, SupCon, multi-similarity and prototype losses are a few lines on top of it (dissim_retrieval.losses).

    query [N, D], reference [M, D], weight [D], bias a number or 0-d tensor, dtypes as in `fused_dissim_score`.

    Args:
        scale: a number or 0-d tensor of either sign; with a negative one the smallest scores dominate.
        query_labels, reference_labels: int64 [N] and [M], or neither with among="all".
        among: "different", the references of another label; "same", those of the query's label; "all".
        exclude_index: int64 [N], for each query a reference that is excluded (for example itself), -1 for none.

    A query without any pair, or whose scores times scale are all -inf, gives -inf and zero gradients.

    Gradients: for query, reference, weight, bias and scale. Backward recomputes the scores of the pairs whose terms
    exceeded u / M of the sum of their row so far, with u the unit roundoff. The other pairs of a row together hold
    less than u of its sum (E15). Second derivatives and forward mode raise NotImplementedError.

    Cost: forward that of the score; backward that of the kept pairs. Memory: [N], one bit for each pair, a block of
    scores, and the gradients. Errors as in `fused_dissim_score`, and ValueError for labels that `among` needs.

    >>> import torch
    >>> query, reference, labels = torch.zeros(1, 1), torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([0, 1, 1])
    >>> fused_dissim_logsumexp(query, reference, torch.tensor([-1.0]), query_labels=labels[:1],
    ...                        reference_labels=labels)
    tensor([-0.3069])
    """
    check_backend(backend)
    query, reference, weight, bias, scale = autocast_to_float32(query, reference, weight, bias, scale)
    check_matrix_inputs(query, reference, weight, bias)
    check_filters(query, reference, exclude_index, query_labels, reference_labels)
    check_among(among, query_labels, ("different", "same"))
    check_scale(scale, query)
    bias = head_bias(bias, weight)
    factor = scale.to(ACCUMULATE[query.dtype]).reshape(1) if isinstance(scale, Tensor) else constant(scale, 1, query)
    filters = (query_labels, reference_labels, exclude_index, among)
    return call(LogSumExpFunction, logsumexp, query, reference, weight, bias, factor, *filters, backend)[0]
