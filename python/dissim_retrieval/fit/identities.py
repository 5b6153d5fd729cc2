"""The rows of random identities: the parts of a fit, and its batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..data.image_set import rows_by_label

#: Rows of a part that is not fitted, at most: every one is ranked against all others.
MAX_CHECKED = 5000


def has_pairs(identity: Tensor) -> bool:
    """Whether there are pairs of one identity and pairs of two."""
    count = torch.bincount(identity)
    return int((count > 0).sum()) >= 2 and int(count.max()) >= 2


def draw_parts(identity: Tensor, held_out: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """bool [N] each: the rows to fit, and at most MAX_CHECKED rows of the other identities, a fraction of all."""
    by_identity = rows_by_label(identity)
    order = torch.randperm(len(by_identity), generator=draw)[: round(held_out * len(by_identity))]
    drawn = _draw_rows(by_identity, order, MAX_CHECKED, draw)
    fitted = ~torch.isin(identity, order[: len(drawn)].to(identity.device))
    checked = torch.zeros_like(fitted)
    for rows in drawn:
        checked[rows] = True
    return fitted, checked


def draw_batches(identity: Tensor, batch: int, steps: int, draw: torch.Generator) -> Iterator[Tensor | slice]:
    """The rows of each step: all, or those of random identities, up to `batch`."""
    if len(identity) <= batch:
        yield from [slice(None)] * steps
        return
    by_identity = rows_by_label(identity)
    for _ in range(steps):
        order = torch.randperm(len(by_identity), generator=draw)
        yield torch.cat(_draw_rows(by_identity, order, batch, draw))


def _draw_rows(by_identity: Sequence[Tensor], order: Tensor, limit: int, draw: torch.Generator) -> list[Tensor]:
    """All rows of the first identities of `order`, up to `limit`; of two with more, limit // 2 random rows each."""
    chosen = [by_identity[i] for i in order.tolist()]
    whole = int((torch.tensor([len(rows) for rows in chosen]).cumsum(0) <= limit).sum())
    if whole >= min(2, len(chosen)):
        return chosen[:whole]
    return [_up_to(rows, limit // 2, draw) for rows in chosen[:2]]


def _up_to(rows: Tensor, count: int, draw: torch.Generator) -> Tensor:
    if len(rows) <= count:
        return rows
    return rows[torch.randperm(len(rows), generator=draw)[:count].to(rows.device)]
