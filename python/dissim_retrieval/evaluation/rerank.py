"""k-reciprocal re-ranking (Zhong, Zheng, Cao, Li: Re-ranking Person Re-identification, CVPR 2017), without N x N.

The published procedure needs a distance that is 0 for a row and itself and larger for all others. With signed weights
some rows may score above the row itself, so the distance of row i to another row j is defined as

    d_ij = max(bias, max over j' != i of s_ij') - s_ij,   d_ii = 0,

which orders the others by their scores. If no weight is positive, no score is above the bias and d_ij = bias - s_ij.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dissim_kernels import fused_dissim_score, fused_dissim_topk, paired_dissim_score

from ..arrays import ArrayLike, as_rows
from .scorers import PairClassifier, check_classifier, finite_rows
from .sparse import SparseRows, entries_of, sum_duplicates

#: Pairs of embeddings that are scored together, pairs of the k-reciprocal sets and rows of the expansion.
PAIRS, MEMBERS, ROWS = 1 << 16, 1 << 17, 1 << 12


class RerankedLists(NamedTuple):
    """Each query's first gallery rows after re-ranking, the smallest distance first."""

    distances: Tensor  #: [N, k], from 0 to 1
    indices: Tensor  #: int64 [N, k]


def k_reciprocal_rerank(
    query: ArrayLike,
    gallery: ArrayLike,
    head: PairClassifier,
    *,
    k: int,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    block: int = 128,
) -> RerankedLists:
    """The k gallery rows of each query that are first after k-reciprocal re-ranking; equal distances by lower row.

    query [N, D], gallery [M, D]; head: a DissimilarityHead or ProjectedHead. The other arguments, the distance and
    the costs are those of `KReciprocalScorer`, which `retrieval_metrics` can evaluate. The result is exact for any k:
    the distances to the whole gallery are computed for `block` queries at a time.
    """
    check_classifier(head)
    query, gallery = as_rows("query", query, head.weight), as_rows("gallery", gallery, head.weight)
    if query.dim() != 2 or gallery.dim() != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query and gallery: expected rows [N, D] and [M, D], got {list(query.shape)} and {list(gallery.shape)}."
        )
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k: expected 1 to {len(gallery)}, the rows of the gallery, got {k}.")
    if block < 1:
        raise ValueError(f"block: expected at least 1 query, got {block}. The default is 128.")
    scorer = KReciprocalScorer(torch.cat([query, gallery]), head, k1=k1, k2=k2, lambda_value=lambda_value)
    candidates = torch.arange(len(query), len(query) + len(gallery))
    lists = []
    for rows in torch.arange(len(query)).split(block):
        found = scorer.distances(rows, candidates).sort(dim=1, stable=True)
        lists.append((found.values[:, :k].clone(), found.indices[:, :k].clone()))
    return RerankedLists(*map(torch.cat, zip(*lists, strict=True)))


class KReciprocalScorer:
    """A scorer of row numbers: minus the re-ranked distance between two rows of `embeddings`.

    (query int64 [n, 1], reference int64 [m, 1]) -> scores [n, m] on the CPU. So the metrics after re-ranking are, for
    N queries and M gallery rows::

        rows = torch.arange(N + M)[:, None]
        scorer = KReciprocalScorer(torch.cat([query, gallery]), head)
        retrieval_metrics(rows[:N], rows[N:], scorer, query_labels, gallery_labels)

    With d the distance of this module, e_ij = (d_ij / max over j' of d_ij')**2 is the published normalized distance.
    The k-reciprocal set of a row has those of its k1 nearest rows that have it among their own k1, and itself. The
    set of a member, with round(k1 / 2) instead of k1, is added if more than two thirds of it are inside. A row is
    encoded by exp(-e_ij) for the members j of its set, divided by their sum; then each encoding is replaced by the
    mean over the k2 nearest rows, itself included. The result is lambda_value * e_ij + (1 - lambda_value) * J_ij with
    J the Jaccard distance of the encodings.

    If no weight is positive, this equals the published procedure with the distance bias - score, except that a row
    comes before its exact copies, and that rows that are all equal have distance 0 instead of NaN. Nothing is lost to
    the length of the lists: the maximum is found by a search for the farthest row, and the encodings are 0 outside of
    the sets.

    Args:
        embeddings: [B, D], queries and gallery; finite.
        head: a DissimilarityHead or ProjectedHead.
        k1, k2: lengths of the lists, at least 1; lambda_value: from 0 to 1.

    Cost: two scans of all B * B pairs for the lists of neighbors, and n * m scores in a call. Memory: the transformed
    rows and, per row, k1 neighbors and an encoding of at most k2 * (k1 + 1) * (k1 / 2 + 2) entries, most of which
    coincide; in a call some n * B numbers. Lists and encodings are computed on the CPU, so that results are
    deterministic.
    Raises ValueError or TypeError if an argument is not valid.
    """

    @torch.no_grad()
    def __init__(
        self, embeddings: ArrayLike, head: PairClassifier, *, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
    ) -> None:
        check_classifier(head)
        for name, value in (("k1", k1), ("k2", k2)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1 neighbor, got {value}.")
        if not 0 <= lambda_value <= 1:
            raise ValueError(f"lambda_value: expected a number from 0 to 1, got {lambda_value}.")
        rows = finite_rows("embeddings", embeddings, head)
        weight = head.weight.detach().to(rows.dtype)
        self.rows, self.weight, self.lambda_value = rows, weight, lambda_value
        count = len(rows)
        if count == 0:
            raise ValueError("embeddings: expected one row or more, got none.")
        itself = torch.arange(count, device=rows.device)
        # Scores without the bias, which is in both terms of the distance.
        length = min(max(k1, k2 - 1), count - 1)
        near = fused_dissim_topk(rows, rows, weight, k=length, exclude_index=itself)
        far = fused_dissim_topk(rows, rows, weight, k=min(1, length), largest=False, exclude_index=itself)
        self.best = near.scores[:, :1].sum(1).clamp(min=0).cpu()
        self.farthest = self.best - far.scores.sum(1).cpu()
        self.farthest[self.farthest == 0] = 1  # all distances of the row are 0
        neighbors = torch.cat([itself[:, None], near.indices], 1).cpu()
        sets = _expanded_sets(neighbors[:, : k1 + 1], neighbors[:, : round(k1 / 2) + 1])
        self.encodings = _mean_of_rows(self._encode(sets, count), neighbors[:, :k2])
        self.members = self.encodings.transposed()

    @torch.no_grad()
    def __call__(self, query: Tensor, reference: Tensor) -> Tensor:
        return -self.distances(query[:, 0], reference[:, 0])

    @torch.no_grad()
    def distances(self, query: Tensor, reference: Tensor) -> Tensor:
        """The re-ranked distances of rows int64 [n] to rows int64 [m], [n, m] from 0 to 1."""
        count, device = len(self.rows), self.rows.device
        query, reference = query.cpu(), reference.cpu()
        row, entry = entries_of(self.encodings, query)
        shared, member = entries_of(self.members, self.encodings.columns[entry])
        smaller = torch.minimum(self.encodings.values[entry][shared], self.members.values[member])
        cells = row[shared] * count + self.members.columns[member]
        overlap = smaller.new_zeros(len(query) * count).index_add_(0, cells, smaller)
        overlap = overlap.view(len(query), count)[:, reference]
        jaccard = 1 - overlap / (2 - overlap)
        scores = fused_dissim_score(self.rows[query.to(device)], self.rows[reference.to(device)], self.weight).cpu()
        original = self._normalized(scores, query[:, None], reference)
        return (1 - self.lambda_value) * jaccard + self.lambda_value * original

    def _normalized(self, scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The squared distances in units of the farthest."""
        distance = (self.best[rows] - scores).clamp(min=0) / self.farthest[rows]
        return distance.square().masked_fill(rows == columns, 0)

    def _encode(self, keys: Tensor, count: int) -> SparseRows:
        """exp(-distance) of the pairs with these keys, row * count + column, divided by the sum of the row."""
        device, values = self.rows.device, []
        for part in keys.split(PAIRS):
            rows, columns = part // count, part % count
            scores = paired_dissim_score(self.rows[rows.to(device)], self.rows[columns.to(device)], self.weight).cpu()
            values.append(self._normalized(scores, rows, columns).neg().exp())
        weights = sum_duplicates(keys, torch.cat(values), count)
        rows = keys // count
        total = weights.values.new_zeros(count).index_add_(0, rows, weights.values)
        return weights._replace(values=weights.values / total[rows])


def _reciprocal(neighbors: Tensor) -> Tensor:
    """The pairs of rows that are in each other's lists [B, k], as keys row * B + column, ascending."""
    count = len(neighbors)
    rows = torch.arange(count)[:, None]
    keys, reverse = rows * count + neighbors, neighbors * count + rows
    keys, reverse = keys.flatten().sort().values, reverse.flatten().sort().values
    return keys[_contained(keys, reverse)]


def _contained(values: Tensor, ascending: Tensor) -> Tensor:
    """Whether each value is among the ascending ones."""
    place = torch.searchsorted(ascending, values).clamp(max=len(ascending) - 1)
    return ascending[place] == values


def _expanded_sets(neighbors: Tensor, nearest: Tensor) -> Tensor:
    """Each row's k-reciprocal set with those of its members that are mostly inside, as keys row * B + column."""
    count = len(neighbors)
    keys, halves = _reciprocal(neighbors), _reciprocal(nearest)
    half_sets = sum_duplicates(halves, torch.ones_like(halves), count)
    parts = [keys]
    for part in keys.split(MEMBERS):
        rows, members = part // count, part % count
        pair, entry = entries_of(half_sets, members)
        added = rows[pair] * count + half_sets.columns[entry]
        inside = torch.bincount(pair[_contained(added, keys)], minlength=len(part))
        size = half_sets.offsets.diff()[members]
        parts.append(added[(3 * inside > 2 * size)[pair]].unique())
    return torch.cat(parts).unique()


def _mean_of_rows(matrix: SparseRows, neighbors: Tensor) -> SparseRows:
    """For each row the mean of the rows in its list [B, k2]."""
    count, length = neighbors.shape
    parts = []
    for rows in torch.arange(count).split(ROWS):
        place, entry = entries_of(matrix, neighbors[rows].flatten())
        keys = rows[place // length] * count + matrix.columns[entry]
        parts.append(sum_duplicates(keys, matrix.values[entry] / length, count))
    # A part has no entries in the rows of the others.
    offsets = torch.stack([part.offsets for part in parts]).sum(0)
    return SparseRows(offsets, torch.cat([p.columns for p in parts]), torch.cat([p.values for p in parts]))
