"""fused_dissim_rank on every backend: the ranks of a full sort, in parts as in whole, and errors."""

import hypothesis.strategies as draw
import pytest
import torch
from hypothesis import given, settings
from rank_cases import check_drawn_case, labels

from dissim_kernels import fused_dissim_rank, fused_dissim_topk, testing
from dissim_kernels.contract import ACCUMULATE

BACKENDS = testing.runnable_backends()
backends = pytest.mark.parametrize("backend", BACKENDS)
dtypes = pytest.mark.parametrize("dtype", ACCUMULATE, ids=str)


@backends
@settings(max_examples=15 if "triton" in BACKENDS else 150, deadline=None, derandomize=True, database=None)
@given(data=draw.data())
def test_ranks_of_a_full_sort(backend, data):
    """1,000 cases are in tests/stress. Triton's interpreter is slow."""
    check_drawn_case(data, backend)


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
    inputs = testing.tied_inputs(6, 500, 5)
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
