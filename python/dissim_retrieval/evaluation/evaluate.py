"""Evaluation of a scorer on images: metrics, curves, score histograms and ranked lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..data import ImageSet
from ..logs import hide_bar
from ..references import count_equal
from .histogram import BINS_PER_BAR, Histogram
from .metrics import PerQueryMetrics, measure_all
from .ranks import Retrieval, ScoreBlock
from .scorers import Scorer

#: Queries that are scored together.
BLOCK = 128


@dataclass(frozen=True)
class RankedList:
    """A query's best candidates, best first: image rows, scores, and whether each shows the query's identity."""

    query: int
    gallery: list[int]
    scores: list[float]
    hits: list[bool]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The results of one method on one set of images."""

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
    queries: Tensor  # int64 [N]: the image rows of the queries
    per_query: PerQueryMetrics  # [N]


def evaluate(
    name: str,
    embeddings: Tensor,
    scorer: Scorer,
    images: ImageSet,
    *,
    ranked: int = 8,
    pictured_queries: Sequence[int] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a scorer: each query of `images` against its gallery, or each image against all others.

    The Market-1501 rule is applied: images with the query's label and camera are excluded. If all images have the
    same camera, the rule would exclude every match, so only the query itself is excluded (as for CUB, Cars and SOP).

    embeddings: [B, D], row i of image i. ranked: length of the ranked list of each of `pictured_queries` (image rows;
    default `pick_queries(images)`). Metrics, CMC and both mAP are those of `retrieval_metrics`.
    Cost: all pairs are scored twice, for the ranks and for the histogram, and those of BLOCK queries once more.
    Memory: about 50 * BLOCK * B bytes, and for a classifier that of `retrieval_metrics`.
    """
    query_rows, gallery_rows = _sides(images)
    retrieval = _retrieval(embeddings, scorer, images)
    pictured = pick_queries(images) if pictured_queries is None else [int(row) for row in pictured_queries]
    for row in pictured:
        if row not in query_rows:
            raise ValueError(
                f"pictured_queries: expected image rows of queries, got {row}, which is none. Use pick_queries."
            )
    per_query = measure_all(retrieval, BLOCK)
    metrics = per_query.summary()
    blocks = -(-len(query_rows) // BLOCK)
    # Not of the first queries only: they may show one identity, whose scores differ from those of the others.
    histogram = Histogram(_candidate_scores(retrieval, range(0, len(query_rows), blocks)))
    lists: dict[int, RankedList] = {}
    for part in tqdm(retrieval.scores(BLOCK), f"evaluate {name}", blocks, disable=hide_bar(progress)):
        histogram.add(part)
        for place, row in enumerate(query_rows[part.rows.start : part.rows.stop].tolist()):
            if row in pictured:
                lists[row] = _ranked_list(part, place, row, gallery_rows, ranked)

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
        queries=query_rows,
        per_query=per_query,
    )


def mean_average_precision(embeddings: Tensor, scorer: Scorer, images: ImageSet) -> float:
    """The mAP of `evaluate`, without the cost of the rest."""
    return measure_all(_retrieval(embeddings, scorer, images), BLOCK).summary()["mAP_mean"]


def _retrieval(embeddings: Tensor, scorer: Scorer, images: ImageSet) -> Retrieval:
    """The queries, gallery and protocol of an image set."""
    if len(embeddings) != len(images):
        raise ValueError(f"embeddings: expected one row for each of {len(images)} images, got {len(embeddings)}.")
    query_rows, gallery_rows = _sides(images)
    cameras = images.cameras if _many_cameras(images) else None
    return Retrieval.of(
        embeddings[query_rows],
        embeddings[gallery_rows],
        scorer,
        images.labels[query_rows],
        images.labels[gallery_rows],
        query_cameras=None if cameras is None else cameras[query_rows],
        reference_cameras=None if cameras is None else cameras[gallery_rows],
        exclude_index=query_rows if images.queries is None else None,
    )


def pick_queries(images: ImageSet, *, count: int = 8, seed: int = 0) -> list[int]:
    """`count` queries to show, as image rows: of different identities, with a match, chosen by the seed only."""
    query_rows, gallery_rows = _sides(images)
    views = images.labels * len(images.camera_names) + images.cameras
    # A query and its candidates never have the same key.
    keys = views if _many_cameras(images) else torch.arange(len(images))
    same_label, same_key = (count_equal(values[query_rows], values[gallery_rows]) for values in (images.labels, keys))
    chosen: dict[int, int] = {}
    for place in torch.randperm(len(query_rows), generator=torch.Generator().manual_seed(seed)).tolist():
        if len(chosen) < count and same_label[place] > same_key[place]:
            chosen.setdefault(int(images.labels[query_rows[place]]), int(query_rows[place]))
    return list(chosen.values())


def _candidate_scores(retrieval: Retrieval, queries: range) -> Tensor:
    """The scores of all candidates of these queries."""
    block = next(retrieval.scores(len(queries), queries))
    return block.scores[block.candidate]


def _ranked_list(block: ScoreBlock, place: int, row: int, gallery_rows: Tensor, length: int) -> RankedList:
    """The ranked list of the query at `place` in the block; `row` and `gallery_rows` are image rows."""
    candidates = block.candidate[place].nonzero()[:, 0]
    order = block.scores[place][candidates].neg().sort(stable=True).indices[:length]
    best = candidates[order]
    scores, hits = block.scores[place][best], block.match[place][best]
    return RankedList(row, gallery_rows[best.cpu()].tolist(), scores.tolist(), hits.tolist())


def _sides(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Image rows of the queries and of the gallery."""
    rows = torch.arange(len(images))
    return (rows, rows) if images.queries is None else (rows[images.queries], rows[~images.queries])


def _many_cameras(images: ImageSet) -> bool:
    return len(images.cameras.unique()) > 1
