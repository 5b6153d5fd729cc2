"""fused_dissim_rank on every backend: the ranks of a full sort, in parts as in whole, and errors."""

import itertools

import hypothesis.strategies as draw
import pytest
import torch
from hypothesis import given, settings

from dissim_kernels import fused_dissim_rank, fused_dissim_topk, testing
from dissim_kernels.contract import ACCUMULATE

BACKENDS = testing.runnable_backends()
backends = pytest.mark.parametrize("backend", BACKENDS)
dtypes = pytest.mark.parametrize("dtype", ACCUMULATE, ids=str)


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
    bounds = found.offsets.tolist()
    return [pairs[begin:end] for begin, end in itertools.pairwise(bounds)]


def exact_inputs(rows, columns, dim, seed=0):
    """Small integers, so that scores are exact and many are equal."""
    rng = torch.Generator().manual_seed(seed)
    query, reference = (torch.randint(-1, 2, (n, dim), generator=rng).float() for n in (rows, columns))
    return query, reference, torch.randint(-2, 3, (dim,), generator=rng) / 2.0, 0.25


@backends
@settings(max_examples=1000 // len(BACKENDS) + 1, deadline=None)
@given(data=draw.data())
def test_ranks_of_a_full_sort(backend, data):
    rows, columns, dim = (data.draw(draw.integers(0, limit)) for limit in (9, 200, 6))
    seed, classes = data.draw(draw.integers(0, 999)), data.draw(draw.integers(1, 60))
    inputs = exact_inputs(rows, columns, dim, seed)
    sides = labels(rows, classes, seed), labels(columns, classes, seed + 1)
    options = {"query_labels": sides[0], "reference_labels": sides[1]}
    cameras = None
    if data.draw(draw.booleans()):
        cameras = labels(rows, 2, seed + 2), labels(columns, 2, seed + 3)
        options |= {"query_cameras": cameras[0], "reference_cameras": cameras[1]}
    if data.draw(draw.booleans()):
        options["exclude_index"] = labels(rows, columns + 1, seed + 4) - 1
    found = fused_dissim_rank(*inputs, **options, backend=backend)
    scores = testing.plain_score(*(x.double() if isinstance(x, torch.Tensor) else x for x in inputs))
    assert by_query(found) == sorted_ranks(scores, *sides, cameras, options.get("exclude_index"))


@backends
@dtypes
def test_ranks_are_those_of_the_top_k(dtype, backend):
    """Rounded scores too: the k best of the backend are in the order of its ranks."""
    inputs = testing.random_inputs((7, 33), (300, 33), dtype=dtype)
    one_label = {"query_labels": torch.zeros(7, dtype=torch.long), "reference_labels": torch.zeros(300).long()}
    found = fused_dissim_rank(*inputs, **one_label, backend=backend)
    best = fused_dissim_topk(*inputs, k=300, backend=backend)
    ranks = found.ranks.view(7, 300)
    assert torch.equal(ranks.gather(1, best.indices), torch.arange(300).expand(7, -1))


@backends
@pytest.mark.parametrize("classes", [2, 100], ids=["long lists", "short lists"])
def test_counts_of_shards_add_up(classes, backend):
    inputs = exact_inputs(6, 500, 5)
    query, reference, weight, bias = inputs
    sides, cameras = (labels(6, classes), labels(500, classes, 1)), (labels(6, 2, 2), labels(500, 2, 3))
    options = {"query_labels": sides[0], "query_cameras": cameras[0], "backend": backend}
    whole = fused_dissim_rank(
        *inputs, **options, reference_labels=sides[1], reference_cameras=cameras[1], return_scores=True
    )
    total = torch.zeros_like(whole.ranks)
    for first, last in ((0, 120), (120, 121), (121, 500)):
        shard = slice(first, last)
        total += fused_dissim_rank(
            query, reference[shard], weight, bias, **options, reference_labels=sides[1][shard],
            reference_cameras=cameras[1][shard], positive_offsets=whole.offsets,
            positive_indices=whole.indices - first, positive_scores=whole.scores,
        ).ranks  # fmt: skip
    assert torch.equal(total, whole.ranks)


@backends
def test_a_nan_score_raises_with_its_row(backend):
    query, reference, weight, _ = testing.random_inputs((4, 5), (9, 5))
    query[2, 3] = torch.nan
    with pytest.raises(ValueError, match="query: expected rows whose scores are numbers, got a NaN score in row 2"):
        fused_dissim_rank(query, reference, weight, query_labels=labels(4), reference_labels=labels(9),
                          backend=backend)  # fmt: skip


@backends
def test_infinite_scores_have_ranks(backend):
    query, reference = torch.zeros(1, 1), torch.tensor([[1.0], [torch.inf], [0.0], [torch.inf]])
    found = fused_dissim_rank(query, reference, -torch.ones(1), query_labels=torch.zeros(1).long(),
                              reference_labels=torch.zeros(4).long(), backend=backend)  # fmt: skip
    assert found.ranks.tolist() == [1, 2, 0, 3]


def test_same_result_with_any_number_of_threads():
    inputs = testing.random_inputs((50, 64), (6000, 64))
    sides = {"query_labels": labels(50, 30), "reference_labels": labels(6000, 30, 1)}
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            found.append(fused_dissim_rank(*inputs, **sides))
        assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_errors_name_the_argument():
    inputs = testing.random_inputs((3, 5), (4, 5))
    sides = {"query_labels": labels(3), "reference_labels": labels(4)}
    with pytest.raises(ValueError, match="reference_cameras: expected cameras, since the other side has them"):
        fused_dissim_rank(*inputs, **sides, query_cameras=labels(3))
    lists = {"positive_offsets": torch.tensor([0, 1, 1, 2]), "positive_indices": torch.tensor([0, 1]),
             "positive_scores": torch.zeros(2)}  # fmt: skip
    for name in lists:
        with pytest.raises(ValueError, match=f"{name}: expected a tensor, since the other two are given, got None"):
            fused_dissim_rank(*inputs, **sides, **(lists | {name: None}))
    for offsets in ([0, 2, 1, 2], [1, 1, 1, 2], [0, 1, 1, 3]):
        with pytest.raises(ValueError, match="positive_offsets: expected numbers that ascend from 0 to 2, the pairs"):
            fused_dissim_rank(*inputs, **sides, **(lists | {"positive_offsets": torch.tensor(offsets)}))
    with pytest.raises(ValueError, match="positive_scores: expected numbers, got NaN"):
        fused_dissim_rank(*inputs, **sides, **(lists | {"positive_scores": torch.tensor([0, torch.nan])}))
