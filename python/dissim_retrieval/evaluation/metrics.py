"""Retrieval metrics, of every query and their means.

Everything follows from the ranks r_1 < ... < r_R, counted from 1 among a query's candidates, of its R matches. Which
gallery rows are candidates, and how ties are ordered, is said in ranks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..arrays import ArrayLike
from .ranks import MatchRanks, Retrieval
from .scorers import Scorer

MAP_CONVENTIONS = ("mean", "trapezoid")


@dataclass(frozen=True, eq=False)
class PerQueryMetrics:
    """One value per query, in the order of the queries, on the CPU: what `retrieval_metrics` averages.

    A query without a match has matches 0, first_rank 0, and NaN for the others, which are float64.
    """

    matches: Tensor  #: int64 [N]: R
    first_rank: Tensor  #: int64 [N]: r_1, so that Recall@K is 0 < first_rank <= K
    average_precision: Tensor  #: [N]: sum(i / r_i) / R
    average_precision_trapezoid: Tensor  #: [N]: sum((p(r_i - 1) + p(r_i)) / 2) / R
    inverse_negative_penalty: Tensor  #: [N]: R / r_R
    average_precision_at_r: Tensor  #: [N]: the sum of i / r_i over r_i <= R, divided by R
    r_precision: Tensor  #: [N]: the fraction of matches among the first R

    @property
    def valid(self) -> Tensor:
        """bool [N]: whether the query has a match. The others are skipped in means."""
        return self.matches > 0

    def summary(
        self, *, recall_at: Sequence[int] = (1, 5, 10), max_rank: int = 50, map_convention: str = "mean"
    ) -> dict:
        """The means over the valid queries: the dict that `retrieval_metrics` returns."""
        check_summary(recall_at, max_rank, map_convention)
        valid = self.valid
        if not valid.any():
            raise ValueError(
                f"query_labels: expected a query with a match among its candidates, got none in {len(valid)} queries."
                " Check the labels of both sides, and the cameras: a row with the same label and camera is excluded."
            )
        first = self.first_rank[valid]
        means = {
            "mAP_mean": self.average_precision,
            "mAP_trapezoid": self.average_precision_trapezoid,
            "mINP": self.inverse_negative_penalty,
            "MAP@R": self.average_precision_at_r,
            "R-precision": self.r_precision,
        }
        values = {name: column[valid].mean().item() for name, column in means.items()}
        cmc = torch.bincount(first.clamp(max=max_rank + 1), minlength=max_rank + 2)[1:-1].cumsum(0).double()
        return {
            **{f"recall@{k}": (first <= k).double().mean().item() for k in recall_at},
            "mAP": values[f"mAP_{map_convention}"],
            **values,
            "cmc": (cmc / len(first)).tolist(),
            "queries": int(valid.sum()),
            "skipped": int((~valid).sum()),
        }


def retrieval_metrics(
    query: ArrayLike,
    reference: ArrayLike,
    scorer: Scorer,
    query_labels: ArrayLike,
    reference_labels: ArrayLike,
    *,
    query_cameras: ArrayLike | None = None,
    reference_cameras: ArrayLike | None = None,
    exclude_index: ArrayLike | None = None,
    recall_at: Sequence[int] = (1, 5, 10),
    max_rank: int = 50,
    map_convention: str = "mean",
    block: int = 128,
) -> dict:
    """Recall@K, CMC, mAP, mINP, MAP@R and R-precision of a scorer.

    Tensors, NumPy arrays or lists; the latter two become int64 labels and rows of the scorer's dtype (float32 if it
    has no weight).

    Args:
        query: [N, D]; reference: the gallery [M, D]; rows of any kind that the scorer accepts.
        scorer: (query [n, D], reference [M, D]) -> scores [n, M], larger = "same", e.g. a DissimilarityHead.
        query_labels, reference_labels: int64 [N] and [M].
        query_cameras, reference_cameras: int64 [N] and [M], or neither. With cameras, gallery rows of the query's
        label and camera are excluded for it (the Market-1501 rule).
        exclude_index: int64 [N], a gallery row that is excluded for each query (for example the query itself), -1 for
        none.
        recall_at: the ranks K of the keys "recall@K".
        max_rank: length of the CMC curve.
        map_convention: which mAP the key "mAP" has, "mean" or "trapezoid".
        block: queries that are scored together, if the scorer is neither a DissimilarityHead nor a ProjectedHead.

    Returns a dict of means over the queries that have a match, all in [0, 1], and two counts:

    - "recall@K": whether a match is among the first K, r_1 <= K. (Not the fraction of the matches found.)
    - "cmc": list; entry k-1 is the same for rank k.
    - "mAP_mean": mean precision at each hit, sum(i / r_i) / R, as in torchreid and most papers.
    - "mAP_trapezoid": sum((p(r_i - 1) + p(r_i)) / 2) / R with p(k) the precision at rank k and p(0) = 1, as in
      the Oxford buildings and the official Market-1501 code. That code counts a query without a match as 0:
      multiply by queries / (queries + skipped).
    - "mAP": one of these two. They differ by up to a few points, so compare values of the same convention only.
    - "mINP": R / r_R, where r_R is the rank of the last match (ReID-Survey).
    - "MAP@R": the sum of i / r_i over r_i <= R, divided by R.
    - "R-precision": fraction of matches among the first R (Musgrave et al., A Metric Learning Reality Check).
    - "queries", the number of queries with a match, and "skipped", the number without.

    `per_query_metrics` returns the values of every query.

    Higher score first; equal scores by lower gallery row. Cost: N*M scores. The matches of a DissimilarityHead or
    ProjectedHead are ranked by `fused_dissim_rank`. Memory: the transformed rows, one value of each metric per query,
    and lists of a million matches, or of one query's if it has more. For other scorers: N sorts of M, and about
    50 * block * M bytes. Never N x M.
    Raises ValueError or TypeError if an argument is not valid, and ValueError if a candidate has a NaN score or if no
    query has a match.
    """
    check_summary(recall_at, max_rank, map_convention)
    found = per_query_metrics(
        query,
        reference,
        scorer,
        query_labels,
        reference_labels,
        query_cameras=query_cameras,
        reference_cameras=reference_cameras,
        exclude_index=exclude_index,
        block=block,
    )
    return found.summary(recall_at=recall_at, max_rank=max_rank, map_convention=map_convention)


def per_query_metrics(
    query: ArrayLike,
    reference: ArrayLike,
    scorer: Scorer,
    query_labels: ArrayLike,
    reference_labels: ArrayLike,
    *,
    query_cameras: ArrayLike | None = None,
    reference_cameras: ArrayLike | None = None,
    exclude_index: ArrayLike | None = None,
    block: int = 128,
) -> PerQueryMetrics:
    """The metrics of each query. Arguments, order of ties, cost and errors are those of `retrieval_metrics`.

    ``found.summary()`` is what `retrieval_metrics` returns; it raises ValueError if no query has a match.
    """
    retrieval = Retrieval.of(
        query,
        reference,
        scorer,
        query_labels,
        reference_labels,
        query_cameras=query_cameras,
        reference_cameras=reference_cameras,
        exclude_index=exclude_index,
    )
    return measure_all(retrieval, block)


def measure_all(retrieval: Retrieval, block: int) -> PerQueryMetrics:
    """The metrics of all queries, in blocks."""
    if block < 1:
        raise ValueError(f"block: expected at least 1 query, got {block}. The default is 128.")
    nothing = torch.zeros(0, dtype=torch.int64)
    parts = [measure(MatchRanks(0, nothing, nothing)), *map(measure, retrieval.ranks(block))]
    columns = (torch.cat([getattr(part, field.name) for part in parts]) for field in fields(PerQueryMetrics))
    return PerQueryMetrics(*columns)


def measure(found: MatchRanks) -> PerQueryMetrics:
    """The metrics of a block of queries from the ranks of their matches."""
    matches = torch.bincount(found.rows, minlength=found.queries)
    end = matches.cumsum(0)
    first, last = torch.zeros_like(matches), torch.zeros_like(matches)
    valid = matches > 0
    first[valid], last[valid] = found.ranks[(end - matches)[valid]], found.ranks[end[valid] - 1]
    ranks, relevant = found.ranks.double(), matches[found.rows]
    number = torch.arange(1, len(ranks) + 1, dtype=torch.float64) - (end - matches)[found.rows]
    precision = number / ranks
    before = torch.where(found.ranks == 1, 1.0, (number - 1) / (ranks - 1))
    within = found.ranks <= relevant

    def mean(values: Tensor) -> Tensor:
        """Of the values at each query's matches, NaN without any."""
        return torch.zeros(found.queries, dtype=torch.float64).index_add_(0, found.rows, values) / matches

    return PerQueryMetrics(
        matches=matches,
        first_rank=first,
        average_precision=mean(precision),
        average_precision_trapezoid=mean((precision + before) / 2),
        inverse_negative_penalty=matches / last.double(),
        average_precision_at_r=mean(precision.where(within, 0)),
        r_precision=mean(within.double()),
    )


def check_summary(recall_at: Sequence[int], max_rank: int, map_convention: str) -> None:
    """The options of a summary."""
    if map_convention not in MAP_CONVENTIONS:
        raise ValueError(f"map_convention: expected one of {MAP_CONVENTIONS}, got {map_convention!r}. Choose one.")
    for name, rank in [("max_rank", max_rank), *(("recall_at", k) for k in recall_at)]:
        if rank < 1:
            raise ValueError(f"{name}: expected ranks from 1, got {rank}. Rank 1 is the best candidate.")
