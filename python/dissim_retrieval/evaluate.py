"""Evaluation of a scorer on images: metrics, curves, score histograms and ranked lists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from .data import ImageSet
from .metrics import RankedBlock, Scorer, measure, rank_blocks, summarize

#: Recall levels of the precision-recall curve.
RECALL_GRID = torch.linspace(0, 1, 101, dtype=torch.float64)
#: Bins for the precision-recall curve, and how many of them form one bar of the histogram that is shown.
BINS, BINS_PER_BAR = 4000, 50


@dataclass(frozen=True)
class RankedList:
    """A query's best candidates, best first: image rows, scores, and whether each shows the query's identity."""

    query: int
    gallery: list[int]
    scores: list[float]
    hits: list[bool]


@dataclass(frozen=True)
class Evaluation:
    """The results of one method on one set of images, in plain numbers and lists: `asdict` can be saved as JSON."""

    name: str
    metrics: dict  # as `retrieval_metrics`, without its "cmc"
    cmc: list[float]
    precision: list[float]  # over all pairs at RECALL_GRID, see `Histogram.interpolated_precision`
    bar_edges: list[float]
    same: list[int]  # pairs of one identity by score; the outer bars include scores beyond them
    different: list[int]
    same_above_0: float  # fraction of the pairs of one identity that score 0 or more, the classifier's threshold
    different_above_0: float
    ranked: list[RankedList]


def negative_euclidean(query: Tensor, reference: Tensor) -> Tensor:
    """Scorer: minus the L2 distance."""
    return -torch.cdist(query, reference)


def cosine(query: Tensor, reference: Tensor) -> Tensor:
    """Scorer: cosine similarity."""
    return normalize(query, dim=-1) @ normalize(reference, dim=-1).T


def evaluate(
    name: str,
    embeddings: Tensor,
    scorer: Scorer,
    images: ImageSet,
    *,
    ranked: int = 8,
    pictured_queries: Sequence[int] | None = None,
    block: int = 128,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a scorer: each query of `images` against its gallery, or each image against all others.

    The Market-1501 rule is applied: images with the query's label and camera are excluded. If all images have the
    same camera, the rule would exclude every match, so only the query itself is excluded (as for CUB, Cars and SOP).

    embeddings: [B, D], row i of image i. ranked: length of the ranked list of each of `pictured_queries` (image rows;
    default `pick_queries(images)`). Metrics, CMC and both mAP are those of `retrieval_metrics`.
    Memory: about 50 * block * B bytes.
    """
    if len(embeddings) != len(images):
        raise ValueError(f"embeddings: expected one row for each of {len(images)} images, got {len(embeddings)}.")
    pictured = pick_queries(images) if pictured_queries is None else list(pictured_queries)
    query_rows, gallery_rows = _sides(images)
    cameras = images.cameras if _many_cameras(images) else None
    blocks = rank_blocks(
        embeddings[query_rows],
        embeddings[gallery_rows],
        scorer,
        images.labels[query_rows],
        images.labels[gallery_rows],
        query_cameras=None if cameras is None else cameras[query_rows],
        reference_cameras=None if cameras is None else cameras[gallery_rows],
        exclude_index=query_rows if images.queries is None else None,
        block=block,
    )
    histogram: Histogram | None = None
    per_query: list[dict[str, Tensor]] = []
    lists: dict[int, RankedList] = {}
    for part in tqdm(
        blocks, f"evaluate {name}", total=-(-len(query_rows) // block), disable=None if progress else True
    ):
        per_query.append(measure(part.hit_ranks()))
        histogram = histogram or Histogram(part.scores[part.candidate])
        histogram.add(part)
        for place, row in enumerate(query_rows[part.rows.start : part.rows.stop].tolist()):
            if row in pictured:
                lists[row] = _ranked_list(part, place, row, gallery_rows, ranked)

    metrics = summarize(per_query, recall_at=(1, 5, 10), max_rank=50, map_convention="mean")
    assert histogram is not None  # summarize raises if there is no query
    same_above_0, different_above_0 = histogram.fractions_above_0()
    return Evaluation(
        name=name,
        cmc=metrics.pop("cmc"),
        metrics=metrics,
        precision=histogram.interpolated_precision().tolist(),
        bar_edges=histogram.edges[::BINS_PER_BAR].tolist(),
        same=histogram.same.unflatten(0, (-1, BINS_PER_BAR)).sum(1).tolist(),
        different=histogram.different.unflatten(0, (-1, BINS_PER_BAR)).sum(1).tolist(),
        same_above_0=same_above_0,
        different_above_0=different_above_0,
        ranked=[lists[row] for row in pictured],
    )


def pick_queries(images: ImageSet, *, count: int = 8, seed: int = 0) -> list[int]:
    """`count` queries to show, as image rows: of different identities, with a match, chosen by the seed only."""
    query_rows, gallery_rows = _sides(images)
    views = images.labels * len(images.camera_names) + images.cameras
    keys = (
        views if _many_cameras(images) else torch.arange(len(images))
    )  # a query and its candidates never have the same key
    same_label, same_key = (
        _count_equal(values[query_rows], values[gallery_rows]) for values in (images.labels, keys)
    )
    chosen: dict[int, int] = {}
    for place in torch.randperm(len(query_rows), generator=torch.Generator().manual_seed(seed)).tolist():
        if len(chosen) < count and same_label[place] > same_key[place]:
            chosen.setdefault(int(images.labels[query_rows[place]]), int(query_rows[place]))
    return list(chosen.values())


class Histogram:
    """Counts of same and different pairs by score, in bins over the given scores."""

    def __init__(self, scores: Tensor) -> None:
        finite = scores[scores.isfinite()].double()
        low, high = (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 1.0)
        margin = 0.05 * (high - low) or 1.0
        width = (high - low + 2 * margin) / (BINS - 1)
        # multiples of the width, so that 0 is an edge and the counts above it are exact
        self.edges = torch.arange(BINS + 1, dtype=torch.float64).add(math.floor((low - margin) / width)).mul(width)
        self.same = torch.zeros(BINS, dtype=torch.int64)
        self.different = torch.zeros(BINS, dtype=torch.int64)

    def add(self, block: RankedBlock) -> None:
        self.same += self._count(block.scores[block.match])
        self.different += self._count(block.scores[block.candidate & ~block.match])

    def _count(self, scores: Tensor) -> Tensor:
        inner = self.edges[1:-1].to(scores.device)
        bins = torch.bucketize(scores.double(), inner, right=True)
        return torch.bincount(bins, minlength=BINS).cpu()

    def fractions_above_0(self) -> tuple[float, float]:
        """Of the same and of the different pairs, the fraction that scores 0 or more."""
        first = int(torch.searchsorted(self.edges, 0.0))
        same, different = (
            counts[first:].sum().item() / max(1, counts.sum().item()) for counts in (self.same, self.different)
        )
        return same, different

    def interpolated_precision(self) -> Tensor:
        """For each recall of RECALL_GRID, the best precision of "same if score >= t" with at least that recall.

        t is the lower edge of a bin. The counts at these edges are exact.
        """
        found = self.same.flip(0).cumsum(0).double()
        precision = found / (found + self.different.flip(0).cumsum(0)).clamp(min=1)
        best = precision.flip(0).cummax(0).values.flip(0)
        return best[torch.searchsorted(found / found[-1], RECALL_GRID - 1e-9)]


def _ranked_list(block: RankedBlock, place: int, row: int, gallery_rows: Tensor, length: int) -> RankedList:
    """The ranked list of the query at `place` in the block; `row` and `gallery_rows` are image rows."""
    order = block.order[place]
    best = order[block.candidate[place][order]][:length]
    scores, hits = block.scores[place][best], block.match[place][best]
    return RankedList(row, gallery_rows[best].tolist(), scores.tolist(), hits.tolist())


def _sides(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Image rows of the queries and of the gallery."""
    rows = torch.arange(len(images))
    return (rows, rows) if images.queries is None else (rows[images.queries], rows[~images.queries])


def _count_equal(values: Tensor, among: Tensor) -> Tensor:
    """How many entries of `among` equal each value."""
    ordered = among.sort().values
    return torch.searchsorted(ordered, values, right=True) - torch.searchsorted(ordered, values)


def _many_cameras(images: ImageSet) -> bool:
    return len(images.cameras.unique()) > 1
