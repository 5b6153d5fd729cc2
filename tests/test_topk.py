"""The top-k search, compared with a stable sort of the full score matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as draw

from dissim_kernels import fused_dissim_topk, testing
from dissim_kernels.contract import ACCUMULATE, AMONG

backends = pytest.mark.parametrize("backend", testing.runnable_backends())


def check(inputs, k, backend, largest=True, exact=False, **filters):
    """The result equals the definition up to ties within the bound. exact: with a bound of 0, for exact scores."""
    with testing.poisoned_memory():
        found = fused_dissim_topk(*inputs, k=k, largest=largest, backend=backend, **filters)
    scores = testing.plain_score(*inputs.double())
    bound = torch.zeros_like(scores) if exact else testing.score_bound(*inputs)
    allowed = testing.plain_candidates(*scores.shape, **filters)
    assert found.scores.dtype == inputs.query.dtype
    testing.assert_topk_equal(*found, scores, bound, allowed, largest)


EXACT = ("ties", "zeros of both signs", "zero weight")


def labels(count, classes=4, seed=0):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


@backends
@pytest.mark.parametrize("dtype", ACCUMULATE, ids=str)
@pytest.mark.parametrize("largest", [True, False])
def test_edge_case_inputs(dtype, largest, backend):
    for name, inputs in testing.edge_case_inputs(dtype).items():
        if inputs.query.dim() == 2 and inputs.reference.dim() == 2 and inputs.weight.dim() == 1:
            columns, exact = len(inputs.reference), name.removeprefix("long: ") in EXACT
            for k in {0, min(1, columns), columns // 2, columns}:
                check(inputs, k, backend, largest, exact=exact)


@backends
@pytest.mark.parametrize("largest", [True, False])
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(data=draw.data())
def test_ties_are_ordered_by_the_lower_index_with_any_filter(largest, backend, data):
    """Exact arithmetic, so that the indices must equal those of a stable sort."""
    sizes = draw.sampled_from([1, 2, 15, 31, 64, 129, 300])
    rows, columns, dim = data.draw(sizes), data.draw(sizes), data.draw(draw.sampled_from([1, 2, 17, 99]))
    inputs = testing.tied_inputs(rows, columns, dim, seed=data.draw(draw.integers(0, 99)))
    filters = {}
    if data.draw(draw.booleans()):
        filters["exclude_index"] = labels(rows, columns + 1, seed=1) - 1
    if data.draw(draw.booleans()):
        filters |= {"query_labels": labels(rows), "reference_labels": labels(columns, seed=2)}
        filters["among"] = data.draw(draw.sampled_from(AMONG))
    max_k = int(testing.plain_candidates(rows, columns, **filters).sum(1).min())
    check(inputs, data.draw(draw.integers(0, max_k)), backend, largest, exact=True, **filters)


@backends
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("k", "columns"), [(1000, 40_000), (10_000, 10_300)])
def test_large_k(k, columns, largest, filtered, backend):
    """Many ties. With filters also rows of NaN, which come last where k is nearly the number of references."""
    inputs, filters = testing.tied_inputs(2, columns, 3), {}
    if filtered:
        inputs.reference[:: 3 * columns // k] = torch.nan
        filters = {"exclude_index": torch.tensor([7, -1]), "query_labels": torch.tensor([0, 1]),
                   "reference_labels": labels(columns, 10 * columns // k, seed=3) + 1}  # fmt: skip
    max_k = int(testing.plain_candidates(2, columns, **filters).sum(1).min())
    check(inputs, min(k, max_k), backend, largest, exact=True, **filters)


@backends
@pytest.mark.parametrize("largest", [True, False])
def test_nan_never_ranks_above_a_number(largest, backend):
    """NaN comes after the worst infinity; several NaN are ordered by index."""
    worst = -torch.inf if largest else torch.inf
    inputs = testing.Inputs(torch.zeros(1, 1), torch.tensor([[torch.nan], [torch.inf], [torch.nan], [3.0]]),
                          torch.tensor([1.0 if worst > 0 else -1.0]))  # fmt: skip
    found = fused_dissim_topk(*inputs, k=4, largest=largest, backend=backend)
    assert found.indices.tolist() == [[3, 1, 0, 2]]
    assert found.scores[0, 1] == worst and found.scores[0, 2:].isnan().all()


@backends
def test_exclude_index_of_minus_one_excludes_nothing(backend):
    inputs = testing.random_inputs((40, 8), (40, 8))
    inputs = inputs._replace(reference=inputs.query, weight=-inputs.weight.abs())
    itself = torch.arange(40)
    assert (fused_dissim_topk(*inputs, k=1, backend=backend).indices[:, 0] == itself).all()
    check(inputs, 39, backend, exclude_index=itself)
    exclude_index = itself.masked_fill(itself % 2 == 0, -1)
    first = fused_dissim_topk(*inputs, k=1, exclude_index=exclude_index, backend=backend).indices[:, 0]
    assert ((first == itself) == (exclude_index == -1)).all()


@backends
def test_hardest_positives_and_negatives(backend):
    """The worst of the query's label but itself, and the best of the others."""
    inputs = testing.random_inputs((40, 8), (40, 8))
    inputs = inputs._replace(reference=inputs.query)
    sides, itself = {"query_labels": labels(40), "reference_labels": labels(40)}, torch.arange(40)
    scores, same = testing.plain_score(*inputs), labels(40)[:, None] == labels(40)
    positive = fused_dissim_topk(*inputs, k=1, **sides, among="same", largest=False, exclude_index=itself,
                                 backend=backend)  # fmt: skip
    assert torch.equal(positive.indices[:, 0], scores.masked_fill(~same | torch.eye(40).bool(), torch.inf).argmin(1))
    negative = fused_dissim_topk(*inputs, k=1, **sides, backend=backend)
    assert torch.equal(negative.indices[:, 0], scores.masked_fill(same, -torch.inf).argmax(1))


@backends
def test_among_is_checked(backend):
    inputs = testing.random_inputs((3, 5), (4, 5))
    with pytest.raises(ValueError, match="among: expected one of 'different', 'same', 'all', got None"):
        fused_dissim_topk(*inputs, k=1, among=None, backend=backend)
    with pytest.raises(ValueError, match="query_labels: expected labels, for among='same', got None"):
        fused_dissim_topk(*inputs, k=1, among="same", backend=backend)


@backends
def test_any_int64_labels_are_distinguished(backend):
    big = torch.tensor([2**24, 2**24 + 1, 2**53, 2**53 + 1, -(2**63)])
    inputs = testing.random_inputs((5, 3), (5, 3))
    check(inputs, 4, backend, query_labels=big, reference_labels=big)


@backends
@pytest.mark.parametrize(
    ("filters", "candidates", "row"),
    [({"exclude_index": torch.tensor([-1, 2, -1])}, 3, 1),
     ({"query_labels": torch.tensor([0, 0, 7]), "reference_labels": torch.tensor([0, 1, 7, 7])}, 3, 0),
     ({"query_labels": torch.tensor([7, 7, 0]), "reference_labels": torch.full((4,), 7), "among": "same"}, 0, 2)],
)  # fmt: skip
def test_too_few_candidates_raise_with_the_row(filters, candidates, row, backend):
    inputs = testing.random_inputs((3, 5), (4, 5))
    message = f"k: expected at most the {candidates} candidates of query row {row}, got 4"
    with pytest.raises(ValueError, match=message):
        fused_dissim_topk(*inputs, k=4, backend=backend, **filters)


@backends
@pytest.mark.parametrize("queries", [0, 3])
@pytest.mark.parametrize("filtered", [False, True])
def test_k_above_the_rows_raises_before_allocating(queries, filtered, backend):
    inputs = testing.random_inputs((queries, 5), (4, 5))
    filters = {"exclude_index": torch.zeros(queries, dtype=torch.int64)} if filtered else {}
    for k in (5, 2**50):  # 2**50 results fit in no memory
        with pytest.raises(ValueError, match=f"k: expected at most the 4 rows of reference, got {k}"):
            fused_dissim_topk(*inputs, k=k, backend=backend, **filters)


@backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ranks_by_scores_in_the_accumulator_dtype(dtype, backend):
    """Scores that are equal in half precision are ordered by the float32 scores."""
    steps = torch.tensor([[0.0], [2**-7], [2**-6], [2**-8]], dtype=dtype)
    found = fused_dissim_topk(torch.zeros(1, 1, dtype=dtype), steps, torch.ones(1, dtype=dtype), 256.0, k=4,
                              backend=backend)  # fmt: skip
    assert found.indices.tolist() == [[2, 1, 3, 0]] and (found.scores == 256).all()


@backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_a_large_offset(dtype, backend):
    check(testing.offset_inputs(testing.tied_inputs(9, 40, 17, dtype)), 7, backend, exact=True)


@backends
def test_same_result_with_any_number_of_threads(backend):
    rows, columns = (600, 4000) if backend == "cpu" else (200, 700)  # enough for several tasks
    inputs, threads = testing.tied_inputs(rows, columns, 9), torch.get_num_threads()
    check(inputs, 50, backend, exact=True)
    try:
        found = []
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            found.append(fused_dissim_topk(*inputs, k=50, backend=backend))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_result_is_a_named_tuple():
    found = fused_dissim_topk(*testing.random_inputs((3, 5), (4, 5)), k=2)
    assert found.scores is found[0] and found.indices is found[1] and found.indices.shape == (3, 2)
