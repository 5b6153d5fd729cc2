"""One fit, measured: the average precision and the recall@1 of each identity of a part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from dissim_retrieval.evaluation.metrics import PerQueryMetrics, measure
from dissim_retrieval.evaluation.ranks import Retrieval
from dissim_retrieval.evaluation.scorers import Scorer
from torch import Tensor

from .data import Content, Part
from .plan import Group
from .tuning import Range


class Fitted(NamedTuple):
    """The result of a fit: from images or features to embeddings, and the scorer of two sets of embeddings."""

    embed: Callable[[Any], Tensor]
    scorer: Scorer


@dataclass(frozen=True)
class Method:
    """A method that is compared: ``fit(group, training part, settings, seed)`` for settings from its space."""

    fit: Callable[[Group, Any, Mapping[str, Any], int], Fitted]
    space: Mapping[str, Range]
    ours: bool = False
    """Whether it learns the weights of the dissimilarity space; the others are what it is compared with."""


class Values(NamedTuple):
    """Of each identity, int64 [I], the mean over its queries: float64 [I] each."""

    identities: Tensor
    precision: Tensor
    recall_at_1: Tensor


class Measured(NamedTuple):
    """A part's values under two protocols, which have the same queries, matches and identities."""

    standard: Values
    """Images with the query's label and camera are excluded; in sets of one camera, the query itself."""
    other_cameras: Values | None
    """All images of the query's camera are excluded. None for sets of one camera."""


@torch.no_grad()
def measure_part(fitted: Fitted, part: Part) -> Measured:
    """Rank the gallery of a part for each query.

    Raises FloatingPointError if an embedding is not finite."""
    content: Content = part.content
    rows, labels, cameras = fitted.embed(content), content.labels, content.cameras
    if not rows.isfinite().all():
        raise FloatingPointError("an embedding is not finite")
    query_cameras, gallery_cameras = cameras[part.queries], cameras[part.gallery]
    one_camera = len(cameras.unique()) == 1
    retrieval = Retrieval.of(
        rows[part.queries], rows[part.gallery], fitted.scorer, labels[part.queries], labels[part.gallery],
        query_cameras=None if one_camera else query_cameras,
        reference_cameras=None if one_camera else gallery_cameras,
        exclude_index=part.queries if one_camera and content.queries is None else None,
    )  # fmt: skip
    standard, other_cameras = [], []
    for block in retrieval.scores(block=128):
        standard.append(measure(block.ranks()))
        if not one_camera:
            other = query_cameras[block.rows.start : block.rows.stop, None] != gallery_cameras
            other_cameras.append(measure(replace(block, candidate=block.candidate & other).ranks()))
    of_queries = labels[part.queries]
    return Measured(
        _of_identities(standard, of_queries), None if one_camera else _of_identities(other_cameras, of_queries)
    )


def _of_identities(blocks: list[PerQueryMetrics], labels: Tensor) -> Values:
    """The means over each identity's queries, without those that have no match."""
    precision = torch.cat([block.average_precision for block in blocks])
    hit = torch.cat([block.first_rank == 1 for block in blocks]).double()
    matched = precision.isfinite()
    identities, place, count = labels[matched].unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(2, len(identities), dtype=torch.float64)
    sums.index_add_(1, place, torch.stack([precision[matched], hit[matched]]))
    return Values(identities, *(sums / count))
