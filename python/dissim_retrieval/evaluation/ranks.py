"""The ranks of every query's matches, from which all retrieval metrics follow.

Protocol. A gallery row is excluded for a query if `exclude_index` names it, or if cameras are given and both its
label and its camera are the query's (the Market-1501 rule). The other rows are candidates, and those of the query's
label are its matches.

Order. Higher score first; ties by lower gallery row. NaN has no rank and raises ValueError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dissim_kernels import fused_dissim_rank

from ..arrays import ArrayLike, as_indices, as_rows
from ..references import count_equal
from .scorers import PairClassifier, Scorer, is_pair_classifier

#: Queries that are ranked together have about this many matches; `fused_dissim_rank` needs 200 bytes for each.
MATCHES_PER_BLOCK = 1 << 20


@dataclass(frozen=True)
class MatchRanks:
    """The matches of a block of queries, in the order of the queries and then of the ranks; on the CPU."""

    queries: int
    rows: Tensor  # [P] int64: the query of each match, counted in the block
    ranks: Tensor  # [P] int64: from 1, among the candidates


@dataclass(frozen=True)
class ScoreBlock:
    """A block of n queries against all M gallery rows."""

    rows: range
    scores: Tensor  # [n, M]
    candidate: Tensor  # [n, M] bool
    match: Tensor  # [n, M] bool: candidates of the query's label

    def ranks(self) -> MatchRanks:
        """By a sort of every query's scores."""
        order = self.scores.neg().sort(dim=1, stable=True).indices
        rows, place = self.match.gather(1, order).nonzero(as_tuple=True)
        ranks = self.candidate.gather(1, order).cumsum(1)[rows, place]
        return MatchRanks(len(self.rows), rows.cpu(), ranks.cpu())


@dataclass(frozen=True)
class Retrieval:
    """Queries, a gallery, a scorer and a protocol; `Retrieval.of` makes one of checked arguments."""

    query: Tensor
    reference: Tensor
    scorer: Scorer
    query_labels: Tensor
    reference_labels: Tensor
    query_cameras: Tensor | None
    reference_cameras: Tensor | None
    exclude_index: Tensor | None

    @classmethod
    def of(
        cls,
        query: ArrayLike,
        reference: ArrayLike,
        scorer: Scorer,
        query_labels: ArrayLike,
        reference_labels: ArrayLike,
        *,
        query_cameras: ArrayLike | None = None,
        reference_cameras: ArrayLike | None = None,
        exclude_index: ArrayLike | None = None,
    ) -> Retrieval:
        """Arguments as in `retrieval_metrics`."""
        if (query_cameras is None) != (reference_cameras is None):
            missing = "query_cameras" if query_cameras is None else "reference_cameras"
            raise ValueError(
                f"{missing}: expected cameras, since the other side has them, got None. Pass both or neither."
            )
        like = scorer.weight if is_pair_classifier(scorer) else None
        query, reference = as_rows("query", query, like), as_rows("reference", reference, like)

        def indices(name: str, values: ArrayLike, rows: int) -> Tensor:
            found = as_indices(name, values)
            if found.shape != (rows,):
                raise ValueError(f"{name}: expected shape [{rows}], got {list(found.shape)}. Pass one for each row.")
            return found.to(reference.device).contiguous()

        queries, gallery = len(query), len(reference)
        if exclude_index is not None:
            exclude_index = indices("exclude_index", exclude_index, queries)
            outside = (exclude_index < -1) | (exclude_index >= gallery)
            if outside.any():
                raise ValueError(
                    f"exclude_index: expected gallery rows below {gallery}, or -1 for none, got"
                    f" {int(exclude_index[outside][0])}. Count the rows of reference from 0."
                )
        return cls(
            query,
            reference,
            scorer,
            indices("query_labels", query_labels, queries),
            indices("reference_labels", reference_labels, gallery),
            None if query_cameras is None else indices("query_cameras", query_cameras, queries),
            None if reference_cameras is None else indices("reference_cameras", reference_cameras, gallery),
            exclude_index,
        )

    @torch.no_grad()
    def ranks(self, block: int) -> Iterator[MatchRanks]:
        """The ranks of all matches: by `fused_dissim_rank` for a classifier, else by sorts of `block` queries."""
        if not is_pair_classifier(self.scorer):
            yield from (part.ranks() for part in self.scores(block))
            return
        gallery = self.scorer.transform(self.reference)
        matches = count_equal(self.query_labels, self.reference_labels)
        group = (matches.cumsum(0) - matches) // MATCHES_PER_BLOCK
        start = 0
        for count in group.unique_consecutive(return_counts=True)[1].tolist():
            rows = range(start, start + count)
            start += count
            try:
                found = self._fused_ranks(self.scorer, gallery, rows)
            except ValueError:
                # A score is NaN. The scores themselves tell whether it is that of a candidate, and name the query.
                yield from (part.ranks() for part in self.scores(block, rows))
            else:
                yield found

    def _fused_ranks(self, classifier: PairClassifier, gallery: Tensor, rows: range) -> MatchRanks:
        part = slice(rows.start, rows.stop)
        offsets, _, ranks = fused_dissim_rank(
            classifier.transform(self.query[part]),
            gallery,
            classifier.weight,
            classifier.bias[0],
            query_labels=self.query_labels[part],
            reference_labels=self.reference_labels,
            query_cameras=None if self.query_cameras is None else self.query_cameras[part],
            reference_cameras=self.reference_cameras,
            exclude_index=None if self.exclude_index is None else self.exclude_index[part],
        )
        query = torch.arange(len(rows), device=ranks.device).repeat_interleave(offsets.diff())
        ordered = (query * len(gallery) + ranks).sort().values.cpu()
        return MatchRanks(len(rows), ordered // len(gallery), ordered % len(gallery) + 1)

    @torch.no_grad()
    def scores(self, block: int, among: range | None = None) -> Iterator[ScoreBlock]:
        """Score `block` queries at a time against the whole gallery. among: these queries only, with any step."""
        among = range(len(self.query)) if among is None else among
        gallery = len(self.reference)
        columns = torch.arange(gallery, device=self.reference_labels.device)
        for start in range(0, len(among), block):
            part = among[start : start + block]
            rows = slice(part.start, part.stop, part.step)
            scores = self.scorer(self.query[rows], self.reference)
            if scores.shape != (len(part), gallery):
                raise ValueError(
                    f"scorer: expected scores [n, M] = {[len(part), gallery]}, got {list(scores.shape)}. "
                    "It takes query [n, D] and reference [M, D]."
                )
            same = self.query_labels[rows, None] == self.reference_labels
            candidate = torch.ones_like(same)
            if self.exclude_index is not None:
                candidate &= self.exclude_index[rows, None] != columns
            if self.query_cameras is not None and self.reference_cameras is not None:
                candidate &= ~(same & (self.query_cameras[rows, None] == self.reference_cameras))
            unranked = (scores.isnan() & candidate).any(1)
            if unranked.any():
                raise ValueError(
                    f"scorer: expected numbers, got a NaN score for query {part[int(unranked.long().argmax())]}. "
                    "Look for rows of query and reference that are not finite."
                )
            yield ScoreBlock(part, scores, candidate, same & candidate)
