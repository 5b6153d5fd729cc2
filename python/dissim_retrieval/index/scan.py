"""Exact searches over the segments of a snapshot: the k best, those above a threshold, the k best groups.

Segments are scored one after the other and their results merged: larger scores first, equal scores by sequence
number. Rows in half precision are ranked by their float32 scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dissim_kernels import fused_dissim_score, fused_dissim_topk, paired_dissim_score

from ..head import DissimilarityHead
from .arguments import transformed
from .preparation import Preparation
from .segments import BLOCK_VALUES, Block, Snapshot


class Query(NamedTuple):
    """Transformed rows [N, D] and the parameters of the score."""

    rows: Tensor
    weight: Tensor
    bias: Tensor

    def float(self) -> Query:
        return Query(*(tensor.float() for tensor in self))

    def split(self, size: int) -> list[Query]:
        return [self._replace(rows=rows) for rows in self.rows.split(size)]


def as_query(head: DissimilarityHead, embeddings: Any) -> Query:
    """Query embeddings [N, D] as a user passes them, and the parameters of the head."""
    return Query(transformed(head, "query", embeddings), head.weight.detach(), head.bias.detach()[0])


class Best(NamedTuple):
    """Candidates of every query, best first: scores, sequence numbers and positions, each [N, c], on the CPU."""

    scores: Tensor
    sequence: Tensor
    positions: Tensor


def merged(parts: list[Best], k: int) -> Best:
    """The k best of all parts. There is at least one."""
    return _sorted(Best(*(torch.cat(values, 1) for values in zip(*parts, strict=True))), k)


def _sorted(best: Best, k: int) -> Best:
    order = best.sequence.argsort(1)
    by_score = best.scores.gather(1, order).neg().sort(dim=1, stable=True).indices  # ascending, which puts NaN last
    order = order.gather(1, by_score)[:, :k]
    return Best(*(tensor.gather(1, order) for tensor in best))


def _merged(best: Best | None, more: Best, k: int) -> Best:
    return more if best is None else merged([best, more], k)


def top_k(
    query: Query, snapshot: Snapshot, k: int, chosen: np.ndarray | None, preparation: Preparation | None
) -> Best:
    """The k best rows of every query; fewer if there are fewer candidates. chosen: positions, None for all."""
    best = None
    parts = [None] * len(snapshot.segments) if chosen is None else snapshot.split(chosen)
    for segment, offset, places in zip(snapshot.segments, snapshot.offsets[:-1], parts, strict=True):
        for block in segment.blocks(places, preparation, query.weight):
            scores, rows = _block_top_k(query, block, k)
            at = block.positions(rows.numpy())
            found = Best(scores, torch.from_numpy(segment.sequence[at]), torch.from_numpy(offset + at))
            if query.rows.dtype in (torch.float16, torch.bfloat16):
                found = _sorted(found, k)
            best = _merged(best, found, k)
    return best if best is not None else nothing(query)


def nothing(query: Query) -> Best:
    """The best rows of no candidates."""
    dtype = torch.promote_types(query.rows.dtype, torch.float32)
    none = torch.empty(len(query.rows), 0, dtype=torch.int64)
    return Best(none.to(dtype), none, none)


def _block_top_k(query: Query, block: Block, k: int) -> tuple[Tensor, Tensor]:
    labels = None if block.excluded is None else block.excluded.new_ones(len(query.rows))
    best = fused_dissim_topk(
        query.rows, block.rows, query.weight, query.bias, k=min(k, block.candidates),
        query_labels=labels, reference_labels=block.excluded, **block.prepared,
    )  # fmt: skip
    scores = best.scores
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = _float32_scores(query, block.rows, best.indices)
    return scores.cpu(), best.indices.cpu()


def _float32_scores(query: Query, rows: Tensor, indices: Tensor) -> Tensor:
    """The scores [N, k] of listed rows, which half precision would round."""
    exact = query.float()
    size = max(1, BLOCK_VALUES // max(1, indices.shape[1] * rows.shape[1]))
    return torch.cat(
        [
            paired_dissim_score(
                part.repeat_interleave(indices.shape[1], 0), rows[listed.flatten()].float(), exact.weight, exact.bias
            ).view_as(listed)
            for part, listed in zip(exact.rows.split(size), indices.split(size), strict=True)
        ]
    )


def all_scores(query: Query, rows: Tensor) -> Tensor:
    """The scores of all pairs, [N, m], at least float32.

    A few rows are padded, because their scores would be rounded in another way than those that `top_k` finds.
    """
    if query.rows.dtype in (torch.float16, torch.bfloat16):
        query, rows = query.float(), rows.float()
    padded = F.pad(rows, (0, 0, 0, 17 - len(rows))) if len(rows) < 17 else rows
    return fused_dissim_score(query.rows, padded, query.weight, query.bias)[:, : len(rows)]


class Scores(NamedTuple):
    """Scores [N, m] of candidates, and their sequence numbers and positions [m]."""

    scores: Tensor
    sequence: np.ndarray
    positions: np.ndarray


def score_blocks(query: Query, snapshot: Snapshot, chosen: np.ndarray | None) -> Iterator[Scores]:
    """The scores of all candidates, in blocks of limited size."""
    parts = [None] * len(snapshot.segments) if chosen is None else snapshot.split(chosen)
    size = max(1, BLOCK_VALUES // max(len(query.rows), query.rows.shape[1]))
    for segment, offset, places in zip(snapshot.segments, snapshot.offsets[:-1], parts, strict=True):
        for block in segment.blocks(places, None, query.weight):
            for first in range(0, len(block.rows), size):
                scores = all_scores(query, block.rows[first : first + size])
                at = block.positions(np.arange(first, first + scores.shape[1]))
                live = segment.is_live(at)
                if not live.all():
                    scores, at = scores[:, torch.from_numpy(live).to(scores.device)], at[live]
                yield Scores(scores, segment.sequence[at], offset + at)


class Pairs(NamedTuple):
    """Pairs of a query and a row: the query's number, score, sequence number and position, each [P], on the CPU."""

    numbers: Tensor
    scores: Tensor
    sequence: Tensor
    positions: Tensor


def above(query: Query, snapshot: Snapshot, threshold: float, chosen: np.ndarray | None) -> Pairs:
    """The rows that score `threshold` or more, in any order."""
    found = [no_pairs(query)]
    for block in score_blocks(query, snapshot, chosen):
        numbers, columns = (block.scores >= threshold).nonzero(as_tuple=True)
        scores, numbers, columns = block.scores[numbers, columns].cpu(), numbers.cpu(), columns.cpu()
        found.append(Pairs(numbers, scores, *(torch.from_numpy(values)[columns] for values in block[1:])))
    return joined_pairs(found)


def no_pairs(query: Query) -> Pairs:
    none = torch.empty(0, dtype=torch.int64)
    return Pairs(none, nothing(query).scores.flatten(), none, none)


def joined_pairs(parts: list[Pairs]) -> Pairs:
    return Pairs(*map(torch.cat, zip(*parts, strict=True)))


def best_first(found: Pairs, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets [queries + 1], scores and positions, best first for each query."""
    order = found.sequence.argsort()
    order = order[found.scores[order].sort(descending=True, stable=True).indices]
    order = order[found.numbers[order].sort(stable=True).indices]
    offsets = torch.searchsorted(found.numbers[order], torch.arange(queries + 1))
    return offsets, found.scores[order], found.positions[order]


def _median(scores: Tensor) -> Tensor:
    ordered, size = scores.sort(-1).values, scores.shape[-1]
    middle = (ordered[..., (size - 1) // 2] + ordered[..., size // 2]) / 2
    return torch.where(ordered[..., -1].isnan(), torch.nan, middle)


#: How the scores of the references of a group become one score.
FUSE: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda scores: scores.amax(-1),
    "mean": lambda scores: scores.mean(-1),
    "min": lambda scores: scores.amin(-1),
    "median": _median,
}


class Candidates(NamedTuple):
    """Candidates of a grouped search, in the order of their sequence numbers, and the number of the group of each."""

    sequence: np.ndarray
    groups: np.ndarray

    def queries_at_a_time(self) -> int:
        """So many that their scores take 64 MiB, or one."""
        return max(1, BLOCK_VALUES // max(1, len(self.sequence)))


def top_groups(query: Query, snapshot: Snapshot, k: int, candidates: Candidates, fuse: str) -> Best:
    """The k best groups of every query: `positions` of the result are numbers of groups.

    Equal scores are ordered by the groups' first candidates.
    """
    positions = snapshot.positions(candidates.sequence)
    parts = [
        best_groups(part, candidate_scores(part, snapshot, positions), k, candidates, fuse)
        for part in query.split(candidates.queries_at_a_time())
    ]
    return Best(*map(torch.cat, zip(*parts, strict=True)))


def candidate_scores(query: Query, snapshot: Snapshot, positions: np.ndarray) -> list[Scores]:
    """The scores of the rows at these positions."""
    return list(score_blocks(query, snapshot, None if len(positions) == len(snapshot) else positions))


def best_groups(query: Query, blocks: list[Scores], k: int, candidates: Candidates, fuse: str) -> Best:
    """The same from the scores of all candidates."""
    if not blocks:
        return nothing(query)
    scores = torch.cat([block.scores for block in blocks], 1)
    sequence = np.concatenate([block.sequence for block in blocks])
    groups = candidates.groups[candidates.sequence.searchsorted(sequence)]
    order = np.lexsort((sequence, groups))
    numbers, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    best = None
    for size in np.unique(sizes):
        same_size = sizes == size
        members = order[starts[same_size][:, None] + np.arange(size)]
        fused = FUSE[fuse](scores[:, torch.from_numpy(members).to(scores.device)]).cpu()
        first, number = (
            torch.from_numpy(values).expand_as(fused) for values in (sequence[members[:, 0]], numbers[same_size])
        )
        best = _merged(best, _sorted(Best(fused, first, number), k), k)
    return best if best is not None else nothing(query)
