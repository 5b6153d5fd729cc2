"""The checks of dissim_kernels.testing: they accept right results and fail for every kind of wrong one."""

import math

import pytest
import torch

from dissim_kernels import testing
from dissim_kernels.contract import ACCUMULATE

EXACT = torch.tensor([[3.0, 1.0, 3.0, math.nan, 2.0], [0.0, 5.0, 4.0, 1.0, 4.0]], dtype=torch.float64)
ALLOWED = torch.tensor([[True] * 5, [True, False, True, True, True]])
RIGHT = [[0, 2, 4, 1, 3], [2, 4, 3, 0]]


def assert_topk(rows, scores=None, bound=0.0, largest=True, k=4):
    indices = torch.tensor([row[:k] for row in rows])
    scores = EXACT.gather(1, indices) if scores is None else torch.tensor(scores, dtype=torch.float64)
    testing.assert_topk_equal(scores, indices, EXACT, torch.full_like(EXACT, bound), ALLOWED, largest)


def test_assert_topk_equal_accepts_right_results():
    assert_topk(RIGHT)
    assert_topk(RIGHT, bound=0.01)
    assert_topk([[1, 4, 0, 2], [0, 3, 2, 4]], largest=False)
    assert_topk([[2, 0, 4, 1], [4, 2, 3, 0]], bound=0.01)  # a tie either way
    assert_topk([[0, 4], [2, 4]], bound=0.5, k=2)  # 2 instead of 3, within both bounds


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([[2, 0, 4, 1], [2, 4, 3, 0]], {}),  # higher index first
        ([[0, 2, 1, 4], [2, 4, 3, 0]], {"bound": 0.01}),  # not best first
        ([[0, 4], [2, 4]], {"bound": 0.01, "k": 2}),  # a better reference is missing
        ([[0, 0, 4, 1], [2, 4, 3, 0]], {"bound": 0.01}),  # an index twice
        ([[0, 2, 4, 1], [1, 2, 4, 3]], {"bound": 0.01}),  # an excluded reference
        ([[0, 2, 4, 3], [2, 4, 3, 0]], {"bound": 0.01}),  # NaN before a number
        ([[0, 2, 4, 5], [2, 4, 3, 0]], {}),  # an index out of range
        (RIGHT, {"scores": [[3.0, 3.0, 2.0, 1.1], [4.0, 4.0, 1.0, 0.0]], "bound": 0.01}),  # wrong score
        (RIGHT, {"scores": [[3.0, 3.0, 2.0, math.nan], [4.0, 4.0, 1.0, 0.0]], "bound": 0.01}),
    ],
)
def test_assert_topk_equal_fails_wrong_results(rows, options):
    with pytest.raises((AssertionError, RuntimeError)):
        assert_topk(rows, **options)


@pytest.mark.parametrize("wrong", [1.2, math.nan, math.inf, -1.0])
def test_assert_within_fails_errors_nan_and_infinity(wrong):
    expected, bound = torch.tensor([1.0, math.nan, math.inf]).double(), torch.full((3,), 0.1)
    testing.assert_within(torch.tensor([1.05, math.nan, math.inf]), expected, bound)
    for place, value in enumerate((wrong, 1.0, -math.inf)):
        actual = torch.tensor([1.05, math.nan, math.inf])
        actual[place] = value
        with pytest.raises(AssertionError, match=rf"\[{place}\]"):
            testing.assert_within(actual, expected, bound)
    with pytest.raises(AssertionError, match="shape"):
        testing.assert_within(torch.ones(1), expected, bound)


@pytest.mark.parametrize("dtype", ACCUMULATE, ids=str)
def test_bounds_hold_for_plain_torch_and_are_not_slack(dtype):
    """Plain torch in the accumulator dtype stays within the bounds; a slightly larger error does not."""
    inputs = testing.random_inputs((40, 16), (50, 16), dtype=dtype)
    acc = testing.Inputs(*(x.to(ACCUMULATE[dtype]) for x in inputs))
    exact, bound = testing.plain_score(*inputs.double()), testing.score_bound(*inputs)
    testing.assert_within(testing.plain_score(*acc).to(dtype), exact, bound)
    slack = torch.finfo(dtype).eps * (20 if dtype == ACCUMULATE[dtype] else 2)
    with pytest.raises(AssertionError):
        testing.assert_within((exact * (1 + slack)).to(dtype), exact, bound)


def test_edge_case_inputs_have_the_named_properties():
    cases = testing.edge_case_inputs(torch.float32)
    differences = cases["ties"].query[:, None] - cases["ties"].reference
    assert (differences == 0).float().mean() > 0.1
    assert cases["query is reference"].query is cases["query is reference"].reference
    strides = {layout: cases[f"query {layout}"].query.stride() for layout in testing.LAYOUTS}
    assert len({*strides.values()}) == len(testing.LAYOUTS) - 1  # "unaligned" has the strides of "contiguous"
    assert 0 in strides["repeated rows"] and 0 in strides["repeated columns"]
    assert cases["query unaligned"].query.data_ptr() % 64
    assert {x.query.dtype for dtype in ACCUMULATE for x in testing.edge_case_inputs(dtype).values()} == {*ACCUMULATE}


def test_poisoned_memory_is_nan_only_in_its_context():
    with testing.poisoned_memory():
        assert torch.empty(5).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
