"""Drawn cases of fused_dissim_rank, compared with a full sort of each query's scores."""

import itertools

import hypothesis.strategies as draw
import torch

from dissim_kernels import fused_dissim_rank, testing


def labels(count, classes=4, seed=0):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def sorted_ranks(scores, query_labels, reference_labels, cameras=None, exclude_index=None):
    """[(row, rank), ...] of each query's matches, by a full sort."""
    ranks = []
    for n, row in enumerate(scores):
        same = reference_labels == query_labels[n]
        candidate = torch.ones_like(same)
        if cameras is not None:
            candidate &= ~(same & (cameras[1] == cameras[0][n]))
        if exclude_index is not None and 0 <= exclude_index[n] < len(row):
            candidate[exclude_index[n]] = False
        order = row.neg().sort(stable=True).indices
        place = {int(m): rank for rank, m in enumerate(order[candidate[order]])}
        ranks.append([(m, place[m]) for m in (same & candidate).nonzero()[:, 0].tolist()])
    return ranks


def by_query(found):
    pairs = list(zip(found.indices.tolist(), found.ranks.tolist(), strict=True))
    return [pairs[begin:end] for begin, end in itertools.pairwise(found.offsets.tolist())]


def check_drawn_case(data, backend, max_references=200):
    """Exact scores, of which many are equal, with and without cameras and an excluded reference."""
    rows, columns, dim = (data.draw(draw.integers(0, limit)) for limit in (9, max_references, 6))
    seed, classes = data.draw(draw.integers(0, 999)), data.draw(draw.integers(1, 60))
    inputs = testing.tied_inputs(rows, columns, dim, seed=seed)
    sides = labels(rows, classes, seed), labels(columns, classes, seed + 1)
    options = {"query_labels": sides[0], "reference_labels": sides[1]}
    cameras = None
    if data.draw(draw.booleans()):
        cameras = labels(rows, 2, seed + 2), labels(columns, 2, seed + 3)
        options |= {"query_cameras": cameras[0], "reference_cameras": cameras[1]}
    if data.draw(draw.booleans()):
        options["exclude_index"] = labels(rows, columns + 1, seed + 4) - 1
    found = fused_dissim_rank(*inputs, **options, backend=backend)
    scores = testing.plain_score(*inputs.double())
    assert by_query(found) == sorted_ranks(scores, *sides, cameras, options.get("exclude_index"))
