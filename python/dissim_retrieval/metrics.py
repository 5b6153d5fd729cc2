"""Retrieval metrics over a ranked gallery, streamed in blocks of queries.

Everything follows from one table: for each query the ranks r_1 < ... < r_R, counted from 1 among its candidates, of
the R gallery rows that share its label.

Protocol. A gallery row is excluded for a query if `exclude_index` names it, or if cameras are given and both its
label and its camera are the query's (the Market-1501 rule). The other rows are candidates. Queries with R = 0 are
skipped and counted. Detections without an identity (Market-1501's label -1) must be removed before.

Order. Higher score first; ties by lower gallery row. NaN has no rank and raises ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .arrays import ArrayLike, as_indices, as_rows

#: (query [n, D], reference [M, D]) -> scores [n, M], larger = "same".
Scorer = Callable[[Tensor, Tensor], Tensor]

MAP_CONVENTIONS = ("mean", "trapezoid")


@dataclass(frozen=True)
class RankedBlock:
    """A block of n queries against all M gallery rows; the masks and scores are in gallery order."""

    rows: range
    scores: Tensor  # [n, M]
    order: Tensor  # [n, M] int64: all gallery rows, best first, including excluded ones
    candidate: Tensor  # [n, M] bool
    match: Tensor  # [n, M] bool: candidates of the query's label

    def hit_ranks(self) -> Tensor:
        """[n, max R or 1] float64: each query's r_1 < ... < r_R among its candidates, padded with inf."""
        match = self.match.gather(1, self.order)
        query, place = match.nonzero(as_tuple=True)
        rank = self.candidate.gather(1, self.order).cumsum(1)[query, place]
        number = match.cumsum(1)[query, place] - 1
        width = max(1, int(match.sum(1).max()))
        ranks = torch.full((len(self.rows), width), torch.inf, dtype=torch.float64)
        ranks[query.cpu(), number.cpu()] = rank.double().cpu()
        return ranks


@torch.no_grad()
def rank_blocks(
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
) -> Iterator[RankedBlock]:
    """Score and sort `block` queries at a time against the whole gallery. Arguments as in `retrieval_metrics`."""
    if (query_cameras is None) != (reference_cameras is None):
        missing = "query_cameras" if query_cameras is None else "reference_cameras"
        raise ValueError(
            f"{missing}: expected cameras, since the other side has them, got None. Pass both or neither."
        )
    if block < 1:
        raise ValueError(f"block: expected at least 1 query, got {block}. The default is 128.")
    query, reference = as_rows("query", query), as_rows("reference", reference)
    queries, gallery = len(query), len(reference)
    query_labels = _indices("query_labels", query_labels, queries)
    reference_labels = _indices("reference_labels", reference_labels, gallery)
    if query_cameras is not None:
        query_cameras = _indices("query_cameras", query_cameras, queries)
        reference_cameras = _indices("reference_cameras", reference_cameras, gallery)
    if exclude_index is not None:
        exclude_index = _indices("exclude_index", exclude_index, queries)

    columns = torch.arange(gallery, device=reference_labels.device)
    for start in range(0, queries, block):
        rows = slice(start, min(start + block, queries))
        scores = scorer(query[rows], reference)
        if scores.shape != (rows.stop - start, gallery):
            raise ValueError(
                f"scorer: expected scores [n, M] = {[rows.stop - start, gallery]}, got {list(scores.shape)}. "
                "It takes query [n, D] and reference [M, D]."
            )
        same = query_labels[rows, None] == reference_labels
        candidate = torch.ones_like(same) if exclude_index is None else exclude_index[rows, None] != columns
        if query_cameras is not None and reference_cameras is not None:
            candidate &= ~(same & (query_cameras[rows, None] == reference_cameras))
        unranked = (scores.isnan() & candidate).any(1)
        if unranked.any():
            raise ValueError(
                f"scorer: expected numbers, got a NaN score for query {start + int(unranked.long().argmax())}. "
                "Look for rows of query and reference that are not finite."
            )
        order = scores.neg().sort(dim=1, stable=True).indices
        yield RankedBlock(range(start, rows.stop), scores, order, candidate, same & candidate)


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

    Tensors, NumPy arrays or lists; the latter two become float32 rows and int64 labels.

    Args:
        query: [N, D]; reference: the gallery [M, D]; rows of any kind that the scorer accepts.
        scorer: (query [n, D], reference [M, D]) -> scores [n, M], larger = "same", e.g. a DissimilarityHead.
        query_labels, reference_labels: int64 [N] and [M].
        query_cameras, reference_cameras: int64 [N] and [M], or neither.
        exclude_index: int64 [N], a gallery row that is excluded for each query (for example the query itself), -1 for
        none.
        recall_at: the ranks K of the keys "recall@K".
        max_rank: length of the CMC curve.
        map_convention: which mAP the key "mAP" has, "mean" or "trapezoid".
        block: queries that are scored together.

    Returns a dict of means over the queries that have a match, all in [0, 1], and two counts:

    - "recall@K": whether a match is among the first K, r_1 <= K. (Not the fraction of the matches found.)
    - "cmc": list; entry k-1 is the same for rank k.
    - "mAP_mean": mean precision at each hit, sum(i / r_i) / R, as in torchreid and most papers.
    - "mAP_trapezoid": sum((p(r_i - 1) + p(r_i)) / 2) / R with p(k) the precision at rank k and p(0) = 1, as in
      the Oxford buildings and the official Market-1501 code.
    - "mAP": one of these two. They differ by up to a few points, so compare values of the same convention only.
    - "mINP": R / r_R, where r_R is the rank of the last match (ReID-Survey).
    - "MAP@R": the sum of i / r_i over r_i <= R, divided by R.
    - "R-precision": fraction of matches among the first R (Musgrave et al., A Metric Learning Reality Check).
    - "queries", the number of queries with a match, and "skipped", the number without.

    Cost: N*M scores and N sorts of M; memory: about 50 * block * M bytes, never N x M.
    Raises ValueError or TypeError if an argument is not valid, and ValueError if a candidate has a NaN score or if no
    query has a match.
    """
    if map_convention not in MAP_CONVENTIONS:
        raise ValueError(f"map_convention: expected one of {MAP_CONVENTIONS}, got {map_convention!r}. Choose one.")
    blocks = rank_blocks(
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
    per_query = [measure(ranked.hit_ranks()) for ranked in blocks]
    return summarize(per_query, recall_at=recall_at, max_rank=max_rank, map_convention=map_convention)


def measure(ranks: Tensor) -> dict[str, Tensor]:
    """One float64 value per query and metric from `RankedBlock.hit_ranks`; "first" is r_1, inf if R = 0."""
    found = ranks.isfinite()
    relevant = found.sum(1).clamp(min=1)
    number = torch.arange(1, ranks.shape[1] + 1, dtype=torch.float64)
    precision = number / ranks  # 0 where padded
    before = torch.where(ranks == 1, 1.0, (number - 1) / (ranks - 1))
    within = ranks <= relevant[:, None]
    return {
        "first": ranks[:, 0],
        "mAP_mean": precision.sum(1) / relevant,
        "mAP_trapezoid": (precision + before).sum(1) / (2 * relevant),
        "mINP": relevant / ranks.where(found, 0).amax(1),
        "MAP@R": precision.where(within, 0).sum(1) / relevant,
        "R-precision": within.sum(1) / relevant.double(),
    }


def summarize(
    per_query: Sequence[dict[str, Tensor]], *, recall_at: Sequence[int], max_rank: int, map_convention: str
) -> dict:
    """The dict of `retrieval_metrics` from the blocks' `measure`."""
    columns = {name: torch.cat([part[name] for part in per_query]) for name in (per_query[0] if per_query else ())}
    valid = columns["first"].isfinite() if columns else torch.zeros(0, dtype=torch.bool)
    if not valid.any():
        raise ValueError(
            f"query_labels: expected a query with a match among its candidates, got none in {len(valid)} queries. "
            "Check the labels of both sides, and the cameras: a row with the same label and camera is excluded."
        )
    first = columns.pop("first")[valid]
    means = {name: column[valid].mean().item() for name, column in columns.items()}
    cmc = (first[:, None] <= torch.arange(1, max_rank + 1)).double().mean(0)
    return {
        **{f"recall@{k}": (first <= k).double().mean().item() for k in recall_at},
        "mAP": means[f"mAP_{map_convention}"],
        **means,
        "cmc": cmc.tolist(),
        "queries": int(valid.sum()),
        "skipped": int((~valid).sum()),
    }


def _indices(name: str, values: ArrayLike, rows: int) -> Tensor:
    indices = as_indices(name, values)
    if indices.shape != (rows,):
        raise ValueError(f"{name}: expected shape [{rows}], got {list(indices.shape)}. Pass one entry for each row.")
    return indices
