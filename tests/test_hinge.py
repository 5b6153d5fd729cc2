"""The fused hinge loss and its gradients, compared with the full matrix in float64 within the rounding bounds."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as draw

from dissim_kernels import fused_dissim_hinge_loss, testing
from dissim_kernels.contract import ACCUMULATE, BALANCES, REDUCTIONS

backends = pytest.mark.parametrize("backend", testing.runnable_backends())
dtypes = pytest.mark.parametrize("dtype", ACCUMULATE, ids=str)
#: Roundings in the accumulator dtype of a pair's weight and of the sums of the loss, besides one for each row.
EXTRA = 16


def labels(rows, columns, classes=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(classes, (rows,), generator=rng), torch.randint(classes, (columns,), generator=rng)


def check(inputs, sides, backend, upstream=1.0, needs=(True,) * 4, exact=False, margin=1.0, **choices):
    """Loss and gradients are within their bounds.

    exact: `inputs` are `tied_inputs`, and some pairs are exactly on the margin.
    """
    acc = ACCUMULATE[inputs.query.dtype]
    inputs = inputs._replace(bias=torch.as_tensor(inputs.bias or 0.0, dtype=inputs.weight.dtype))
    fused, leaves = (
        [x.detach().requires_grad_(n) for x, n in zip(xs, needs, strict=True)] for xs in (inputs, inputs.double())
    )
    with testing.poisoned_memory():
        loss = fused_dissim_hinge_loss(*fused, *sides, backend=backend, margin=margin, **choices)
        upstream = torch.as_tensor(upstream, dtype=acc).expand(loss.shape)
        if any(needs):
            loss.backward(upstream)
    scores = testing.plain_score(*leaves)
    slope = torch.zeros_like(scores)
    if scores.requires_grad:
        scores.register_hook(slope.copy_)
    expected = testing.plain_hinge_loss(scores, *sides, margin=margin, **choices)
    if any(needs):
        expected.backward(upstream.double())

    bound = torch.zeros_like(scores) if exact else testing.score_bound(*(x.to(acc) for x in inputs))
    undecided = ((margin - scores).abs() <= bound) | ((margin + scores).abs() <= bound)
    assert exact or not undecided.any(), "choose inputs whose pairs are on the same side of the margin after rounding"
    roundings = testing.relative_rounding_error(EXTRA + sum(scores.shape), acc)
    terms = testing.plain_hinge_weights(scores, *sides, **choices) * (
        bound + roundings * (bound + scores.abs() + abs(margin))
    )
    assert loss.dtype == acc
    testing.assert_within(loss, expected, terms.sum(1) if loss.dim() else terms.sum(), "loss")
    bounds = testing.gradient_bounds(slope, *inputs, extra=EXTRA)
    for name, leaf, exact_leaf, limit, needed in zip(inputs._fields, fused, leaves, bounds, needs, strict=True):
        assert (leaf.grad is not None) == needed, name
        if needed:
            assert leaf.grad.dtype == leaf.dtype
            testing.assert_within(leaf.grad, exact_leaf.grad, limit, f"gradient of {name}")


@backends
@dtypes
@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_option_equals_the_definition(reduction, balance, dtype, backend):
    inputs, sides = testing.random_inputs((37, 20), (70, 20), dtype=dtype), labels(37, 70)
    rng = torch.Generator().manual_seed(5)
    for hard, exclude_index in itertools.product((None, 0, 1, 2, 1000), (None, torch.arange(37) - 1)):
        upstream = torch.randn(37, generator=rng) if reduction == "none" else -1.75
        check(inputs, sides, backend, upstream, balance=balance, reduction=reduction, num_hard_negatives=hard,
              exclude_index=exclude_index)  # fmt: skip


@backends
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=draw.data())
def test_ties_and_pairs_on_the_margin(backend, data):
    """Exact arithmetic, so that active pairs and hard negatives do not depend on rounding."""
    sizes = draw.sampled_from([1, 2, 7, 8, 9, 31, 65, 129])
    rows, columns, dim = data.draw(sizes), data.draw(sizes), data.draw(draw.sampled_from([1, 2, 17]))
    inputs = testing.tied_inputs(rows, columns, dim, seed=data.draw(draw.integers(0, 99)))
    sides = labels(rows, columns, data.draw(draw.sampled_from([1, 2, 5])))
    exclude_index = labels(rows, columns + 1, columns + 1)[0] - 1 if data.draw(draw.booleans()) else None
    check(
        inputs, sides, backend, exact=True, exclude_index=exclude_index,
        margin=data.draw(draw.sampled_from([1.0, 0.0, -0.5, 2.25])),
        balance=data.draw(draw.sampled_from(BALANCES)),
        reduction=data.draw(draw.sampled_from(REDUCTIONS)),
        num_hard_negatives=data.draw(draw.sampled_from([None, 0, 1, 2, 50])),
    )  # fmt: skip


@backends
@pytest.mark.parametrize("needs", list(itertools.product((True, False), repeat=4)))
def test_frozen_inputs_get_no_gradient(needs, backend):
    check(testing.random_inputs((9, 20), (33, 20)), labels(9, 33), backend, needs=needs)


@backends
@pytest.mark.parametrize("sizes", [(0, 5, 3), (5, 0, 3), (0, 0, 3), (5, 6, 0), (1, 1, 1), (1, 200, 9), (200, 1, 9)])
@pytest.mark.parametrize("hard", [None, 2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_and_thin_sizes(sizes, hard, reduction, backend):
    rows, columns, dim = sizes
    inputs = testing.random_inputs((rows, dim), (columns, dim))
    check(inputs, labels(rows, columns), backend, num_hard_negatives=hard, reduction=reduction)


@backends
@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("classes", [(0, 1), (0, 0)], ids=["only negatives", "only positives"])
def test_one_kind_of_pair_gets_the_whole_weight(classes, balance, backend):
    left, right = (torch.full((7,), c) for c in classes)
    check(testing.random_inputs((7, 5), (7, 5)), (left, right), backend, balance=balance)


@backends
@dtypes
@pytest.mark.parametrize("hard", [3, None], ids=["sparse pairs", "all pairs"])
@pytest.mark.parametrize("references", [150, 600])
def test_sparse_and_dense_pairs_of_many_tiles(references, hard, dtype, backend):
    """The backward pass depends on the density of active pairs. Here every kept negative is active."""
    inputs = testing.random_inputs((40, 140), (references, 140), dtype=dtype)
    for offset, layout in ((0, "contiguous"), (100, "sliced")):
        rows = [testing.with_layout(x + offset, layout) for x in inputs[:2]]
        check(inputs._replace(query=rows[0], reference=rows[1]), labels(40, references, 1000), backend, margin=1000.0,
              num_hard_negatives=hard)  # fmt: skip


@pytest.mark.parametrize("hard", [None, 3])
def test_many_cpu_tasks(hard):
    check(testing.tied_inputs(256, 5000, 20), labels(256, 5000, 40), "cpu", exact=True, num_hard_negatives=hard)


def test_more_sparse_pairs_than_the_pair_lists_of_the_cpu_hold():
    """275,000 pairs are active, 24 % of all: more than 2^18, less than a quarter."""
    inputs = testing.tied_inputs(1100, 1060, 20)
    check(inputs, labels(1100, 1060, 10**6), "cpu", exact=True, margin=1000.0, num_hard_negatives=250)


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sparse_pairs_of_many_dimensions_and_references(dtype, backend):
    inputs = testing.tied_inputs(12, 2500, 600, dtype)
    check(inputs, labels(12, 2500, 10**6), backend, exact=True, margin=1000.0, num_hard_negatives=100)


@backends
def test_one_reference_is_hardest_for_every_query(backend):
    inputs = testing.random_inputs((1500, 3), (200, 3))
    inputs = inputs._replace(weight=-inputs.weight.abs(), reference=inputs.reference * 9 + 9)
    inputs.reference[70] = 0
    check(inputs, labels(1500, 200, 10**6), backend, margin=1000.0, num_hard_negatives=1)


@backends
@pytest.mark.parametrize("hard", [1, None], ids=["sparse pairs", "all pairs"])
def test_gradients_of_infinities_equal_the_definition(hard, backend):
    """Bit-identical: there are only negatives, a power of two of them, so that all finite values are exact.

    The gradient of the weight in a dimension with an infinity is compared only if all pairs are active: an inactive
    pair's product 0 * Inf may be skipped (E12).
    """
    inputs = testing.tied_inputs(8, 64, 20)
    inputs.query[2, 3], inputs.reference[4, 3], inputs.reference[60, 19] = math.inf, -math.inf, math.inf
    inputs.weight[3] = inputs.weight[19] = 0.25
    sides = torch.zeros(8, dtype=torch.int64), torch.ones(64, dtype=torch.int64)
    leaves = [[x.detach().requires_grad_() for x in xs[:3]] for xs in (inputs, inputs.double())]
    choices = {"num_hard_negatives": hard, "margin": 100.0}
    fused_dissim_hinge_loss(*leaves[0], 0.5, *sides, **choices, backend=backend).backward()
    testing.plain_hinge_loss(testing.plain_score(*leaves[1], 0.5), *sides, **choices).backward()
    defined = ~torch.isin(torch.arange(20), torch.tensor([3, 19])) | (hard is None)
    for found, wanted in zip(*leaves, strict=True):
        here = defined if found.dim() == 1 else slice(None)
        assert torch.equal(found.grad[here].double(), wanted.grad[here])
    assert hard or (leaves[0][2].grad[[3, 19]] == math.inf).all()


@backends
def test_pair_on_the_margin_has_no_loss_and_no_gradient(backend):
    """The comparison of the hinge (E12) is strict."""
    weight = torch.tensor([-1.0], requires_grad=True)
    query, reference = torch.zeros(1, 1), torch.tensor([[0.0], [2.0]])
    loss = fused_dissim_hinge_loss(query, reference, weight, 1.0, torch.tensor([0]), torch.tensor([0, 1]),
                                   backend=backend)  # fmt: skip
    loss.backward()
    assert loss == 0 and weight.grad == 0


@backends
def test_strided_and_shared_inputs(backend):
    for name, inputs in testing.edge_case_inputs(torch.float32).items():
        if name.startswith(("query ", "reference ")) and inputs.query.numel():
            check(inputs, labels(33, len(inputs.reference)), backend)
    x, sides = testing.random_inputs((40, 9), (40, 9), seed=3), labels(40, 40)[0]
    check(x._replace(reference=x.query), (sides, sides), backend, exclude_index=torch.arange(40))


@backends
def test_half_precision_with_a_classifier_in_the_accumulator_dtype(backend):
    for dtype in (torch.float16, torch.bfloat16):
        check(testing.edge_case_inputs(dtype)["weight and bias in the accumulator dtype"], labels(33, 35), backend)


@backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_a_large_offset(dtype, backend):
    inputs = testing.offset_inputs(testing.tied_inputs(9, 40, 17, dtype))
    check(inputs, labels(9, 40), backend, exact=True, margin=2.0)


@backends
def test_nan_score_makes_only_its_row_nan(backend):
    inputs = testing.random_inputs((5, 4), (6, 4))
    inputs.query[2, 1] = torch.nan
    rows = fused_dissim_hinge_loss(*inputs, *labels(5, 6), reduction="none", backend=backend)
    assert rows.isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("num_hard_negatives", [None, 3])
def test_parts_with_the_pair_counts_of_the_whole_sum_to_its_mean(num_hard_negatives, balance):
    inputs, sides = testing.random_inputs((12, 8), (20, 8)), labels(12, 20)
    same = (sides[0][:, None] == sides[1]).sum(1)
    different = 20 - same if num_hard_negatives is None else (20 - same).clamp(max=num_hard_negatives)
    choices = {"num_hard_negatives": num_hard_negatives, "balance": balance}
    whole = fused_dissim_hinge_loss(*inputs, *sides, **choices)
    parts = [
        fused_dissim_hinge_loss(
            inputs.query[rows], *inputs[1:], sides[0][rows], sides[1],
            pair_counts=(same.sum(), int(different.sum())), **choices,
        )
        for rows in (slice(0, 5), slice(5, 12))
    ]  # fmt: skip
    torch.testing.assert_close(sum(parts), whole)
    with pytest.raises(ValueError, match="pair_counts: expected two counts, got 1"):
        fused_dissim_hinge_loss(*inputs, *sides, pair_counts=(same.sum(),))


def test_pair_counts_are_numbers_of_any_kind():
    inputs, sides = testing.random_inputs((4, 3), (5, 3)), labels(4, 5)
    expected = fused_dissim_hinge_loss(*inputs, *sides, pair_counts=(6, 14))
    tensor = torch.tensor([6, 14])
    for counts in ((np.int64(6), np.int64(14)), (np.float32(6), 14.0), tensor, list(tensor), (6, torch.tensor(14))):
        assert torch.equal(fused_dissim_hinge_loss(*inputs, *sides, pair_counts=counts), expected)
    compiled = torch.compile(fused_dissim_hinge_loss, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*inputs, *sides, pair_counts=(6, 14)), expected)


@backends
def test_any_int64_labels_are_distinguished(backend):
    big = torch.tensor([2**24, 2**24 + 1, 2**53, 2**53 + 1, -(2**63)])
    check(testing.random_inputs((5, 3), (5, 3)), (big, big), backend)
