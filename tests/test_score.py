"""Scores and their gradients, compared with the definition in float64 within bounds computed from the inputs."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as draw

from dissim_kernels import fused_dissim_score, paired_dissim_score, testing
from dissim_kernels.contract import ACCUMULATE

BACKENDS = testing.runnable_backends()
backends = pytest.mark.parametrize("backend", BACKENDS)


def leaves(inputs, needs=(True,) * 4):
    return [
        x.detach().requires_grad_(needed) if isinstance(x, torch.Tensor) else x
        for x, needed in zip(inputs, needs, strict=True)
    ]


def gradients(function, inputs, upstream, needs=(True,) * 4):
    """The function's value and the gradients of its arguments, None for those not needed and for numbers."""
    arguments = leaves(inputs, needs)
    value = function(*arguments)
    wanted = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    found = iter(torch.autograd.grad(value, wanted, upstream.to(value.dtype).expand(value.shape)))
    return value.detach(), [next(found) if any(x is w for w in wanted) else None for x in arguments]


def check(inputs, backend, upstream=None, needs=(True,) * 4):
    """Value and gradients are within their bounds. Outputs are poisoned to find elements that are not written."""
    if upstream is None:
        exact = testing.plain_score(*inputs.double())
        upstream = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(inputs.query.dtype)

    def fused(*arguments):
        return fused_dissim_score(*arguments, backend=backend)

    with testing.poisoned_memory():
        value, found = gradients(fused, inputs, upstream, needs)
    exact_value, expected = gradients(testing.plain_score, inputs.double(), upstream.double())
    assert value.dtype == inputs.query.dtype
    testing.assert_within(value, exact_value, testing.score_bound(*inputs), "score")
    bounds = testing.gradient_bounds(upstream.expand(value.shape), *inputs)
    rows = zip(("query", "reference", "weight", "bias"), inputs, found, expected, bounds, needs, strict=True)
    for name, argument, gradient, wanted, bound, needed in rows:
        assert (gradient is None) == (not needed or not isinstance(argument, torch.Tensor)), name
        if gradient is not None:
            assert gradient.dtype == argument.dtype
            testing.assert_within(gradient, wanted, bound, f"gradient of {name}")


CASES = [(dtype, name) for dtype in ACCUMULATE for name in testing.edge_case_inputs(dtype)]


@backends
@pytest.mark.parametrize(("dtype", "name"), CASES, ids=lambda x: str(x).removeprefix("torch."))
def test_score_and_gradients_are_those_of_the_definition(dtype, name, backend):
    check(testing.edge_case_inputs(dtype)[name], backend)


@backends
def test_twice_a_value_may_overflow(backend):
    inputs = testing.random_inputs((18, 200), (40, 200))
    largest = torch.finfo(torch.float32).max
    inputs.query[:, 3], inputs.reference[:, 3], inputs.weight[3] = 0.9 * largest, 0.25 * largest, 1
    exact = testing.plain_score(*inputs.double())
    testing.assert_within(fused_dissim_score(*inputs, backend=backend), exact, testing.score_bound(*inputs), "score")


@pytest.mark.parametrize("columns", [2911, 2912])  # 2912 is a multiple of the cache line
@pytest.mark.parametrize("dtype", ACCUMULATE, ids=str)
def test_more_scores_than_fit_in_caches(dtype, columns):
    inputs = testing.tied_inputs(6000, columns, 2, dtype)
    inputs = inputs._replace(query=inputs.query.unflatten(0, (2, 3000)))
    with testing.poisoned_memory():
        scores = fused_dissim_score(*inputs, backend="cpu")
    assert torch.equal(scores, testing.plain_score(*inputs).to(dtype))  # exact in every dtype


@backends
def test_more_dimensions_than_a_block(backend):
    inputs = testing.tied_inputs(6, 7, 33_000)
    assert torch.equal(fused_dissim_score(*inputs, backend=backend), testing.plain_score(*inputs.double()).float())


@backends
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=draw.data())
def test_random_shapes_layouts_and_ties(backend, data):
    rows, columns, dim = (data.draw(draw.sampled_from([*testing.SIZES, 2, 3, 4, 5, 16, 64])) for _ in range(3))
    batch = data.draw(draw.sampled_from([None, None, 1, 2, 5]))
    lead = () if batch is None else (batch,)
    reference_lead = data.draw(draw.sampled_from([(), lead]))
    heads, seed = data.draw(draw.sampled_from([None, 1, 3])), data.draw(draw.integers(0, 99))
    dtype = data.draw(draw.sampled_from(list(ACCUMULATE)))
    inputs = testing.random_inputs((*lead, rows, dim), (*reference_lead, columns, dim), heads, dtype, seed=seed)
    if data.draw(draw.booleans()):  # ties
        inputs = inputs._replace(query=inputs.query.round(), reference=inputs.reference.round())
    query, reference = (testing.with_layout(x, data.draw(draw.sampled_from(testing.LAYOUTS))) for x in inputs[:2])
    check(inputs._replace(query=query, reference=reference), backend)


@backends
@pytest.mark.parametrize("needs", list(itertools.product((True, False), repeat=4))[:-1])
def test_each_gradient_alone_and_with_any_other(needs, backend):
    for shapes in (((70, 20), (150, 20)), ((5, 1, 20), (5, 1, 20)), ((3, 40), (3, 40))):
        check(testing.random_inputs(*shapes, heads=2), backend, needs=needs)


@backends
@pytest.mark.parametrize("dtype", ACCUMULATE, ids=str)
def test_upstream_gradients_of_any_strides(dtype, backend):
    inputs = testing.random_inputs((37, 19), (130, 19), dtype=dtype)
    whole = torch.randn(130, 74, generator=torch.Generator().manual_seed(2)).to(dtype)
    for upstream in (torch.ones((), dtype=dtype), whole[:, :37].T, whole[:, ::2].T, whole[:1, :37].T.expand(37, 130)):
        check(inputs, backend, upstream)
    check(inputs, backend, whole[:, :37].T * (torch.arange(130) % 50 == 49))  # mostly zeros


@backends
def test_upstream_nan_and_infinity_pass_through(backend):
    inputs = testing.random_inputs((7, 19), (9, 19))
    upstream = torch.ones(7, 9).index_put((torch.arange(3), torch.arange(3)), torch.tensor([torch.nan, torch.inf, 1]))
    check(inputs, backend, upstream)


@backends
@pytest.mark.parametrize("heads", [None, 1, 3])
@pytest.mark.parametrize("dtype", ACCUMULATE, ids=str)
@pytest.mark.parametrize("lead", [((5,), (5,)), ((), ()), ((4, 1), (3,)), ((0,), (1,)), ((130,), (130,))])
def test_paired_score_is_the_diagonal(lead, dtype, heads, backend):
    inputs = testing.random_inputs((*lead[0], 21), (*lead[1], 21), heads, dtype)
    pairs = inputs._replace(query=inputs.query.unsqueeze(-2), reference=inputs.reference.unsqueeze(-2))
    flat = (-2, -1) if heads is None else (-3, -2)
    exact, bound = (x.squeeze(flat) for x in (testing.plain_score(*pairs.double()), testing.score_bound(*pairs)))
    testing.assert_within(paired_dissim_score(*inputs, backend=backend), exact, bound)


SMALL_SHAPES = [((300, 40), (500, 40)), ((130, 99), (300, 99)), ((3, 700), (900, 700)), ((1, 9), (2000, 9)),
             ((70, 5, 33), (70, 6, 33)), ((90, 1, 33), (90, 1, 33))]  # fmt: skip
#: Shapes with tasks for several threads of the CPU.
LARGE_SHAPES = [((600, 40), (900, 40)), ((260, 150), (600, 150)), ((3, 700), (5000, 700)), ((1, 90), (90_000, 90)),
              ((7000, 5, 33), (7000, 6, 33))]  # fmt: skip


#: Backends with a fixed order of sums. The order of the reference is torch's.
FIXED_ORDER = [name for name in BACKENDS if name != "reference"]


@pytest.mark.parametrize(("backend", "shapes"), [*itertools.product(FIXED_ORDER, SMALL_SHAPES),
                                                 *itertools.product(["cpu"], LARGE_SHAPES)], ids=str)  # fmt: skip
def test_bit_identical_in_every_run_with_any_number_of_threads(shapes, backend):
    inputs = testing.random_inputs(*shapes)
    upstream = torch.randn(testing.plain_score(*inputs).shape, generator=torch.Generator().manual_seed(3))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 1, 2, 3, 5):
            torch.set_num_threads(count)
            value, found = gradients(lambda *x: fused_dissim_score(*x, backend=backend), inputs, upstream)
            results.append([value, *found])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@backends
def test_a_tie_has_no_gradient(backend):
    """sgn(0) = 0 (E3), also for zeros of either sign."""
    query, zeros = testing.tied_inputs(40, 40, 33).query, torch.zeros(40, 33)
    for left, right in ((query[:1], query[:1]), (zeros, -zeros), (-zeros, zeros)):
        left, right = left.clone().requires_grad_(), right.clone().requires_grad_()
        fused_dissim_score(left, right, torch.ones(33), backend=backend).sum().backward()
        assert not left.grad.any() and not right.grad.any()


@backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 40])
def test_half_precision_results_are_rounded_to_nearest_even(rows, dtype, backend):
    """Integers whose sums are half way between two numbers of the dtype, and exact in the accumulator dtype."""
    values = torch.randint(0, 8, (rows + 99, 8), generator=torch.Generator().manual_seed(0)).to(dtype)
    inputs = testing.Inputs(values[:rows], values[rows:], torch.ones(8, dtype=dtype), 2 / torch.finfo(dtype).eps)
    exact = testing.plain_score(*inputs.double())
    assert (exact.to(dtype).double() != exact).any()
    assert torch.equal(fused_dissim_score(*inputs, backend=backend), exact.to(dtype))
