"""Every test image as a query against all others: metrics, curves, score histograms and ranked lists of a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from .data import ImageSet
from .metrics import RankedBlock, Scorer, measure, rank_blocks, summarise

#: Recall levels of the precision-recall curve.
RECALL_GRID = torch.linspace(0, 1, 101, dtype=torch.float64)
#: Bins that the precision-recall curve is computed from, and how many of them make one of the pictured histogram.
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
    """What one method reached on one set of images. Plain numbers and lists, so `dataclasses.asdict` is JSON."""

    name: str
    metrics: dict  # as `retrieval_metrics`, without its "cmc"
    cmc: list[float]
    precision: list[float]  # over all pairs at RECALL_GRID, see `Histogram.interpolated_precision`
    bar_edges: list[float]
    same: list[int]  # pairs of one identity by score; the outer bars hold what lies beyond them
    different: list[int]
    ranked: list[RankedList]


def negative_euclidean(query: Tensor, reference: Tensor) -> Tensor:
    """Scorer: minus the L2 distance."""
    return -torch.cdist(query, reference)


def cosine(query: Tensor, reference: Tensor) -> Tensor:
    """Scorer: the cosine of the angle."""
    return normalize(query, dim=-1) @ normalize(reference, dim=-1).T


def evaluate(
    name: str,
    embeddings: Tensor,
    scorer: Scorer,
    images: ImageSet,
    *,
    ranked: int = 10,
    pictured_queries: Sequence[int] | None = None,
    block: int = 128,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a scorer on all images, each a query against all others.

    The Market-1501 rule holds: images with the query's label and camera are no candidates. Where all images share
    one camera, the rule would leave no match, and only the query itself is left out (as for CUB, Cars and SOP).

    embeddings [B, D] belong to images row by row. `ranked` candidates are listed for each of `pictured_queries`
    (image rows; default `pick_queries(images)`). Metrics, CMC and both mAP as in `retrieval_metrics`.
    Memory: about 50 * block * B bytes.
    """
    if len(embeddings) != len(images):
        raise ValueError(f"embeddings: expected one row for each of {len(images)} images, got {len(embeddings)}.")
    pictured = pick_queries(images) if pictured_queries is None else list(pictured_queries)
    cameras = images.cameras if _many_cameras(images) else None
    blocks = rank_blocks(
        embeddings,
        embeddings,
        scorer,
        images.labels,
        images.labels,
        query_cameras=cameras,
        reference_cameras=cameras,
        exclude=torch.arange(len(images)),
        block=block,
    )
    histogram: Histogram | None = None
    per_query, lists = [], {}
    for part in tqdm(blocks, f"evaluate {name}", total=-(-len(images) // block), disable=not progress):
        per_query.append(measure(part.hit_ranks()))
        histogram = histogram or Histogram(part.scores[part.candidate])
        histogram.add(part)
        lists |= {row: _ranked_list(part, row, ranked) for row in pictured if row in part.rows}

    metrics = summarise(per_query, recall_at=(1, 5, 10), max_rank=50, map_convention="mean")
    assert histogram is not None  # summarise refuses an empty set
    return Evaluation(
        name=name,
        cmc=metrics.pop("cmc"),
        metrics=metrics,
        precision=histogram.interpolated_precision().tolist(),
        bar_edges=histogram.edges[::BINS_PER_BAR].tolist(),
        same=histogram.same.unflatten(0, (-1, BINS_PER_BAR)).sum(1).tolist(),
        different=histogram.different.unflatten(0, (-1, BINS_PER_BAR)).sum(1).tolist(),
        ranked=[lists[row] for row in pictured],
    )


def pick_queries(images: ImageSet, *, count: int = 8, seed: int = 0) -> list[int]:
    """`count` image rows to picture: of different identities, with a match, drawn by seed and nothing else."""
    keys = images.labels * len(images.camera_names) + images.cameras
    per_view = torch.unique(keys, return_inverse=True, return_counts=True)
    per_label = torch.unique(images.labels, return_inverse=True, return_counts=True)
    others = per_label[2][per_label[1]] - (per_view[2][per_view[1]] if _many_cameras(images) else 1)
    chosen: dict[int, int] = {}
    for row in torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist():
        if len(chosen) < count and others[row] > 0:
            chosen.setdefault(int(images.labels[row]), row)
    return list(chosen.values())


class Histogram:
    """Counts of same and different pairs by score, in bins around given scores; NaN counts as the lowest score."""

    def __init__(self, scores: Tensor) -> None:
        finite = scores[scores.isfinite()].double()
        low, high = (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 1.0)
        margin = 0.05 * (high - low) or 1.0
        self.edges = torch.linspace(low - margin, high + margin, BINS + 1, dtype=torch.float64)
        self.same = torch.zeros(BINS, dtype=torch.int64)
        self.different = torch.zeros(BINS, dtype=torch.int64)

    def add(self, block: RankedBlock) -> None:
        self.same += self._count(block.scores[block.match])
        self.different += self._count(block.scores[block.candidate & ~block.match])

    def _count(self, scores: Tensor) -> Tensor:
        inner = self.edges[1:-1].to(scores.device)
        bins = torch.bucketize(scores.double().nan_to_num(nan=-torch.inf), inner, right=True)
        return torch.bincount(bins, minlength=BINS).cpu()

    def interpolated_precision(self) -> Tensor:
        """At each recall of RECALL_GRID the best precision of "same if score >= t" with that recall or more.

        The counts at a bin's lower edge t are exact; only the choice of t is as fine as the bins.
        """
        found = self.same.flip(0).cumsum(0).double()
        precision = found / (found + self.different.flip(0).cumsum(0)).clamp(min=1)
        best = precision.flip(0).cummax(0).values.flip(0)
        return best[torch.searchsorted(found / found[-1], RECALL_GRID - 1e-9)]


def _ranked_list(block: RankedBlock, row: int, length: int) -> RankedList:
    place = row - block.rows.start
    order = block.order[place]
    best = order[block.candidate[place][order]][:length]
    scores, hits = block.scores[place][best], block.match[place][best]
    return RankedList(row, best.tolist(), scores.tolist(), hits.tolist())


def _many_cameras(images: ImageSet) -> bool:
    return len(images.cameras.unique()) > 1
