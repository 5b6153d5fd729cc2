"""How many rows come before listed ones, for evaluation: counted in every part of an index, never sorted.

`ranks` asks each part up to three times: for the scores of the listed rows it has, for its numbers of rows that score
more and that score no less, and, where other rows have the same score, for the number of those that come before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dissim_kernels import fused_dissim_rank

from ..arrays import as_tensor
from .arguments import as_ids
from .scan import Pairs, Query, all_scores, no_pairs, nothing, score_blocks
from .segments import Snapshot

#: ask(function, *arguments): the results of function(snapshot, *arguments) for the snapshots of all parts.
Ask = Callable[..., list[Any]]


def ranks(ask: Ask, query: Query, offsets: Any, ids: Any, type: pa.DataType | None) -> Tensor:
    """The number of rows before each listed row, int64 [P]. Those of query n are ids[offsets[n]:offsets[n + 1]].

    type: of the ids of the index. Raises KeyError for an unknown id.
    """
    offsets, unique, place = _as_listed(offsets, ids, len(query.rows), type)
    numbers = torch.arange(len(query.rows)).repeat_interleave(offsets.diff())
    scores, sequence = nothing(query).scores.new_empty(len(place)), torch.full((len(place),), -1)
    for found in ask(listed, query, numbers, unique, place):
        scores[found.positions], sequence[found.positions] = found.scores, found.sequence
    if (sequence < 0).any():
        first = unique[int(place[int((sequence < 0).nonzero()[0])])].as_py()
        raise KeyError(f"ids: expected ids of the index, got {first!r}")
    if not len(place):
        return sequence
    above, not_below = torch.stack(ask(counts, query, offsets, scores)).sum(0).T
    tied = (not_below - above > 1).nonzero()[:, 0]  # with more rows than the listed one
    if len(tied):
        before = ask(ties_before, query, numbers[tied], scores[tied], sequence[tied])
        above[tied] += torch.stack(before).sum(0)
    return above.contiguous()


def _as_listed(offsets: Any, ids: Any, queries: int, type: pa.DataType | None) -> tuple[Tensor, pa.Array, np.ndarray]:
    """Offsets, the listed ids, each once, and the place of every listed id among them."""
    values = as_ids(ids, None, type, repeated=True).dictionary_encode()
    bounds = as_tensor(offsets).cpu()
    if bounds.dtype != torch.int64 or bounds.shape != (queries + 1,):
        raise ValueError(
            f"offsets: expected int64 [{queries + 1}], one more than queries, got {bounds.dtype} {[*bounds.shape]}."
        )
    if bounds[0] != 0 or bounds[-1] != len(values) or (bounds.diff() < 0).any():
        raise ValueError(f"offsets: expected numbers that ascend from 0 to {len(values)}, the number of ids.")
    return bounds, values.dictionary, values.indices.to_numpy().astype(np.int64)


def listed(snapshot: Snapshot, query: Query, numbers: Tensor, ids: pa.Array, place: np.ndarray) -> Pairs:
    """The scores of the listed rows that are here: `positions` are those in the list."""
    positions = snapshot.locate(ids)[place]
    here = (positions >= 0).nonzero()[0]
    if not len(here):
        return no_pairs(query)
    numbers, (once, row) = numbers[torch.from_numpy(here)], np.unique(positions[here], return_inverse=True)
    rows = snapshot.take(once)
    scores = nothing(query).scores.new_empty(len(here))
    for first, part, mine in _query_batches(query, numbers):
        block = all_scores(part, rows[torch.from_numpy(row)[mine].to(rows.device)]).cpu()
        scores[mine] = block[numbers[mine] - first, torch.arange(len(mine))]
    return Pairs(numbers, scores, *map(torch.from_numpy, (snapshot.sequence(positions[here]), here)))


def counts(snapshot: Snapshot, query: Query, offsets: Tensor, scores: Tensor) -> Tensor:
    """How many rows score more than each listed one, and how many no less: [P, 2]."""
    total = torch.zeros(len(scores), 2, dtype=torch.int64)
    device = query.rows.device
    for segment, places in zip(snapshot.segments, snapshot.split(snapshot.live.nonzero()[0]), strict=True):
        all_live = len(places) == len(segment.sequence)
        for block in segment.blocks(None if all_live else places, None, query.weight):
            # Every listed row twice: before all rows of the block, so that none with its score counts, and after.
            ends = torch.tensor([-1, len(block.rows)], device=device).repeat(len(scores))
            found = fused_dissim_rank(
                query.rows, block.rows, query.weight, query.bias,
                query_labels=ends.new_zeros(len(query.rows)), reference_labels=ends.new_ones(len(block.rows)),
                positive_offsets=2 * offsets.to(device), positive_indices=ends,
                positive_scores=scores.to(device).repeat_interleave(2),
            )  # fmt: skip
            total += found.ranks.view_as(total).cpu()
    return total


def ties_before(snapshot: Snapshot, query: Query, numbers: Tensor, scores: Tensor, sequence: Tensor) -> Tensor:
    """How many rows have the score of each listed one and an earlier sequence number."""
    total = torch.zeros(len(scores), dtype=torch.int64)
    for first, part, mine in _query_batches(query, numbers):
        for block in score_blocks(part, snapshot, None):
            block_scores, earlier = block.scores.cpu(), torch.from_numpy(block.sequence)
            for some in mine.split(len(part.rows)):
                tied = block_scores[numbers[some] - first] == scores[some, None]
                total[some] += (tied & (earlier < sequence[some, None])).sum(1)
    return total


def _query_batches(query: Query, numbers: Tensor) -> Iterator[tuple[int, Query, Tensor]]:
    """The queries in batches of 32 to 63: the number of the first, the queries, and which pairs belong to them.

    The scores of up to 16 queries are rounded in another way than those of more, so no smaller batch is split off.
    """
    first = 0
    for rows in query.rows.tensor_split(max(1, len(query.rows) // 32)):
        mine = ((numbers >= first) & (numbers < first + len(rows))).nonzero()[:, 0]
        if len(mine):
            yield first, query._replace(rows=rows), mine
        first += len(rows)
