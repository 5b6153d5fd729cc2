"""The ranks of every query's matches: the public function and the operators, which keep no N x M matrix."""

from __future__ import annotations

from typing import Literal, NamedTuple, NoReturn, overload

import torch
from torch import Tensor

from ..contract import (
    ACCUMULATE,
    Problem,
    RankArguments,
    check_cameras,
    check_filters,
    check_flag,
    check_labels,
    check_matrix_inputs,
    check_positives,
    raise_argument_error,
)
from ..dispatch import check_backend, resolve
from ..operands import (
    check_listed_scores_operands,
    check_listed_scores_values,
    check_rank_operands,
    check_rank_values,
)
from .arguments import autocast_to_float32, head_bias
from .operator import call, operator


class Ranks(NamedTuple):
    """The matches of all queries in compressed-row form: those of query n are at offsets[n] to offsets[n + 1]."""

    offsets: Tensor  #: int64 [N + 1]
    indices: Tensor  #: int64 [P]: reference rows, ascending for each query
    ranks: Tensor  #: int64 [P]: the number of candidates before each match; 0 is the best


class ScoredRanks(NamedTuple):
    """`Ranks` with the matches' scores, in the accumulator dtype: what `positive_scores` takes."""

    offsets: Tensor  #: int64 [N + 1]
    indices: Tensor  #: int64 [P]
    ranks: Tensor  #: int64 [P]
    scores: Tensor  #: [P]


@overload
def fused_dissim_rank(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | float | None = ...,
    *,
    query_labels: Tensor,
    reference_labels: Tensor,
    query_cameras: Tensor | None = ...,
    reference_cameras: Tensor | None = ...,
    exclude_index: Tensor | None = ...,
    positive_offsets: Tensor | None = ...,
    positive_indices: Tensor | None = ...,
    positive_scores: Tensor | None = ...,
    return_scores: Literal[False] = ...,
    backend: str = ...,
) -> Ranks: ...


@overload
def fused_dissim_rank(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | float | None = ...,
    *,
    query_labels: Tensor,
    reference_labels: Tensor,
    query_cameras: Tensor | None = ...,
    reference_cameras: Tensor | None = ...,
    exclude_index: Tensor | None = ...,
    positive_offsets: Tensor | None = ...,
    positive_indices: Tensor | None = ...,
    positive_scores: Tensor | None = ...,
    return_scores: Literal[True],
    backend: str = ...,
) -> ScoredRanks: ...


def fused_dissim_rank(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | float | None = None,
    *,
    query_labels: Tensor,
    reference_labels: Tensor,
    query_cameras: Tensor | None = None,
    reference_cameras: Tensor | None = None,
    exclude_index: Tensor | None = None,
    positive_offsets: Tensor | None = None,
    positive_indices: Tensor | None = None,
    positive_scores: Tensor | None = None,
    return_scores: bool = False,
    backend: str = "auto",
) -> Ranks | ScoredRanks:
    """The matches of each query in the gallery, and for each match how many candidates come before it.

    A match is a candidate with the query's label. All references are candidates except the one that `exclude_index`
    names and, with cameras, those with the query's label and camera (the Market-1501 rule). Larger scores come first;
    if scores are equal, the lower index. Average precision, CMC and every other rank metric follow from the result.

    Plain torch, for one query without cameras::

        order = fused_dissim_score(query, reference, weight, bias)[0].argsort(descending=True, stable=True)
        indices = (reference_labels == query_labels[0]).nonzero()[:, 0]
        ranks = order.argsort()[indices]

    query [N, D], reference [M, D], weight [D], bias a number or 0-d tensor, dtypes as in `fused_dissim_score`.
    Half-precision rows are ranked by their float32 scores.

    Args:
        query_labels, reference_labels: int64 [N] and [M].
        query_cameras, reference_cameras: int64 [N] and [M], or neither.
        exclude_index: int64 [N], for each query a reference row that is no candidate (for example itself), -1 for
            none.
        positive_offsets, positive_indices, positive_scores: matches to use instead of those by label, if the gallery
            is split into shards. They are the result of a call with return_scores=True on the shard that has the
            matches. The counts of all shards then add up to the ranks. positive_indices are relative to the first row
            of this shard: they are below 0 in an earlier shard, and M or more in a later one.
        return_scores: return `ScoredRanks`.

    A derivative raises NotImplementedError, and so do vmap, torch.export and torch.compile with fullgraph=True: the
    number of matches depends on the labels. Without fullgraph, torch.compile breaks its graph here.

    Cost: that of the score, and for each match a comparison with every candidate of its query. Memory: the matches
    and a block of scores. Raises ValueError where a score is NaN, which has no rank; other errors as in
    `fused_dissim_score`. On CUDA it waits for the device.

    >>> import torch
    >>> gallery, labels = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 1, 0, 1])
    >>> fused_dissim_rank(torch.zeros(1, 1), gallery, torch.tensor([-1.0]), query_labels=labels[:1],
    ...                   reference_labels=labels)
    Ranks(offsets=tensor([0, 2]), indices=tensor([0, 2]), ranks=tensor([0, 2]))
    """
    check_backend(backend)
    if torch.compiler.is_compiling():
        _raise_not_implemented("torch.export or torch.compile(fullgraph=True) is", "Call it outside of the graph.")
    query, reference, weight, bias = autocast_to_float32(query, reference, weight, bias)
    check_matrix_inputs(query, reference, weight, bias)
    check_labels("query_labels", query_labels, query.shape[0], query.device)
    check_labels("reference_labels", reference_labels, reference.shape[0], query.device)
    check_filters(query, reference, exclude_index, None, None)
    check_cameras(query, reference, query_cameras, reference_cameras)
    given = (positive_offsets, positive_indices, positive_scores)
    check_positives(query, *given)
    check_flag("return_scores", return_scores)

    bias = head_bias(bias, weight)
    rows, columns, match = _listed_pairs(
        query_labels, reference_labels, query_cameras, reference_cameras, exclude_index
    )
    lists = _offsets(rows, len(query)), columns
    scores = call(_ListedScoresFunction, listed_scores, query, reference, weight, bias, *lists, backend)
    excluded = _Pairs(rows[~match], columns[~match], scores[~match])
    if positive_offsets is None or positive_indices is None or positive_scores is None:
        positives = _Pairs(rows[match], columns[match], scores[match])
    else:
        every_row = torch.arange(len(query), device=query.device)
        positives = _Pairs(every_row.repeat_interleave(positive_offsets.diff()), positive_indices, positive_scores)

    order = _best_first(positives)
    offsets = _offsets(positives.rows, len(query))
    pairs = [x if x is None else x.detach() for x in (query, reference, weight, bias, positives.scores[order])]
    counts, nan_rows = rank(*pairs[:4], offsets, positives.columns[order], pairs[4], backend)
    _check_no_nan(nan_rows)
    ranks = torch.empty_like(counts)
    ranks[order] = counts
    ranks -= _excluded_before(positives, excluded)
    if return_scores:
        return ScoredRanks(offsets, positives.columns, ranks, positives.scores)
    return Ranks(offsets, positives.columns, ranks)


class _Pairs(NamedTuple):
    """Pairs of a query row and a reference row, and their scores; rows ascend."""

    rows: Tensor
    columns: Tensor
    scores: Tensor


def _listed_pairs(query_labels, reference_labels, query_cameras, reference_cameras, exclude_index):
    """The pairs whose scores are needed: rows, columns, and whether each is a match. The others are no candidates:
    those of the query's label and camera, and the one of exclude_index."""
    labels, by_label = reference_labels.sort(stable=True)
    first = torch.searchsorted(labels, query_labels)
    count = torch.searchsorted(labels, query_labels, right=True) - first
    rows = torch.arange(len(query_labels), device=labels.device).repeat_interleave(count)
    place = torch.arange(len(rows), device=labels.device) - (count.cumsum(0) - count - first)[rows]
    columns = by_label[place]
    match = torch.ones_like(rows, dtype=torch.bool)
    if query_cameras is not None:
        match &= query_cameras[rows] != reference_cameras[columns]
    if exclude_index is None:
        return rows, columns, match
    match &= exclude_index[rows] != columns
    # An excluded row of another label is not listed yet.
    excluding = ((exclude_index >= 0) & (exclude_index < len(reference_labels))).nonzero()[:, 0]
    excluding = excluding[reference_labels[exclude_index[excluding]] != query_labels[excluding]]
    rows, order = torch.cat([rows, excluding]).sort(stable=True)
    columns = torch.cat([columns, exclude_index[excluding]])[order]
    match = torch.cat([match, torch.zeros_like(excluding, dtype=torch.bool)])[order]
    return rows, columns, match


def _offsets(rows: Tensor, queries: int) -> Tensor:
    """Where each query's pairs begin among ascending rows, and where the last ones end."""
    return torch.searchsorted(rows, torch.arange(queries + 1, device=rows.device))


def _best_first(pairs: _Pairs) -> Tensor:
    """The order by row, then larger score, then lower column: stable sorts, the last key first."""
    order = pairs.columns.sort(stable=True).indices
    order = order[pairs.scores[order].sort(stable=True, descending=True).indices]
    return order[pairs.rows[order].sort(stable=True).indices]


def _excluded_before(positives: _Pairs, excluded: _Pairs) -> Tensor:
    """How many excluded pairs of its query come before each positive."""
    if not len(excluded.rows):
        return torch.zeros_like(positives.columns)
    both = _Pairs(*map(torch.cat, zip(positives, excluded, strict=True)))
    is_excluded = torch.zeros_like(both.rows)
    is_excluded[len(positives.rows) :] = 1
    order = _best_first(both)
    before = torch.empty_like(is_excluded)
    before[order] = is_excluded[order].cumsum(0)
    of_earlier_queries = torch.searchsorted(excluded.rows, positives.rows)
    return before[: len(positives.rows)] - of_earlier_queries


def _check_no_nan(nan_rows: Tensor) -> None:
    if bool(nan_rows.any()):
        row = int(nan_rows.nonzero()[0])
        remedy = "Look for NaN or Inf in query, reference, weight and bias."
        raise_argument_error("query", "rows whose scores are numbers", f"a NaN score in row {row}", remedy)


# --- the operators -------------------------------------------------------------------------------------------


@operator("dissim::listed_scores", check_listed_scores_operands, check_listed_scores_values)
def listed_scores(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    indices: Tensor,
    backend: str,
) -> Tensor:
    """The scores of listed pairs [P] in the accumulator dtype, bit-identical to those that `rank` compares."""
    module = resolve(backend, Problem("rank", query.device))
    return module.listed_scores(query, reference, weight, bias, offsets, indices)


@operator("dissim::rank", check_rank_operands, check_rank_values, differentiable=False)
def rank(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    indices: Tensor,
    scores: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """How many references of the query come before each listed pair [P] int64, and which queries have a NaN score
    [N] bool. The lists are sorted: larger score first, then lower index."""
    given = RankArguments(query, reference, weight, bias, offsets, indices, scores)
    return resolve(backend, Problem("rank", query.device)).rank(given)


@listed_scores.register_fake
def _(query, reference, weight, bias, offsets, indices, backend):
    return query.new_empty(indices.shape, dtype=ACCUMULATE[query.dtype])


@rank.register_fake
def _(query, reference, weight, bias, offsets, indices, scores, backend):
    return torch.empty_like(indices), query.new_empty(query.shape[0], dtype=torch.bool)


class _ListedScoresFunction(torch.autograd.Function):
    """Raises for vmap and for derivatives, which torch would otherwise treat as zero."""

    forward = staticmethod(listed_scores)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        _raise_no_derivative()

    @staticmethod
    def jvp(ctx, *tangents):
        _raise_no_derivative()

    @staticmethod
    def vmap(info, in_dims, *args) -> NoReturn:
        _raise_not_implemented("vmap is", "Call it in a loop.")


def _raise_no_derivative() -> NoReturn:
    _raise_not_implemented("a derivative is", "Score the pairs with paired_dissim_score, or detach the scores.")


def _raise_not_implemented(what: str, remedy: str) -> NoReturn:
    raise NotImplementedError(f"fused_dissim_rank: {what} not implemented. {remedy}")
