"""fused_dissim_logsumexp on every backend: value and gradients within their bound, edge cases, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as draw

from dissim_kernels import fused_dissim_logsumexp, fused_dissim_score, testing
from dissim_kernels.contract import ACCUMULATE, AMONG
from dissim_kernels.ops.logsumexp import logsumexp

BACKENDS = testing.runnable_backends()
backends = pytest.mark.parametrize("backend", BACKENDS)
dtypes = pytest.mark.parametrize("dtype", ACCUMULATE, ids=str)
SCALES = (0.01, 1.0, 100.0, -3.0)


def labels(count, classes=4, seed=0):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def check(inputs, backend, scale=1.0, among="different", exclude_index=None, classes=4):
    """Value and the five gradients against float64, each within its bound."""
    rows, columns = len(inputs.query), len(inputs.reference)
    acc = ACCUMULATE[inputs.query.dtype]
    sides = labels(rows, classes), labels(columns, classes, seed=1)
    kept = testing.plain_candidates(rows, columns, exclude_index, *sides, among)
    bias = torch.as_tensor(inputs.bias if inputs.bias is not None else 0.0, dtype=acc)
    inputs = inputs._replace(bias=bias)
    leaves = [x.clone().requires_grad_() for x in (*inputs, torch.tensor(scale, dtype=acc))]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    options = {"query_labels": sides[0], "reference_labels": sides[1], "among": among, "exclude_index": exclude_index}
    with testing.poisoned_memory():
        value = fused_dissim_logsumexp(*leaves[:4], scale=leaves[4], **options, backend=backend)
    expected = testing.plain_logsumexp(testing.plain_score(*exact[:4]), kept, exact[4])
    assert value.dtype == acc and value.shape == (rows,)
    upstream = torch.linspace(-1, 1, rows, dtype=acc)
    bounds = testing.logsumexp_bounds(upstream, kept, leaves[4].item(), *(x.detach() for x in leaves[:4]))
    testing.assert_within(value.detach(), expected.detach(), bounds.value, "value")
    some = expected.isfinite()
    grads = torch.autograd.grad(value, leaves, upstream)
    exact_grads = torch.autograd.grad(expected[some].dot(upstream[some].double()), exact)
    for name, grad, wanted in zip(bounds._fields[1:], grads, exact_grads, strict=True):
        testing.assert_within(grad, wanted, getattr(bounds, name), name)
    return value


@backends
@dtypes
@pytest.mark.parametrize("among", ["different", "same", "all"])
@pytest.mark.parametrize("scale", SCALES)
def test_value_and_gradients(dtype, among, scale, backend):
    inputs = testing.random_inputs((9, 37), (150, 37), dtype=dtype)
    check(inputs, backend, scale, among)
    check(inputs, backend, scale, among, exclude_index=torch.arange(9) - 1)


@backends
@dtypes
def test_ties(dtype, backend):
    for scale in SCALES:
        check(testing.tied_inputs(9, 70, 17, dtype=dtype), backend, scale, "all")


@backends
@settings(max_examples=5 if "triton" in BACKENDS else 60, deadline=None, derandomize=True, database=None)
@given(data=draw.data())
def test_drawn_cases(backend, data):
    """Any shape, dtype, strides, filter and scale of either sign; with many classes most rows have no pair."""
    sizes, layouts = draw.sampled_from([1, 2, 15, 33, 129]), draw.sampled_from(["contiguous", "transposed"])
    rows, columns, dim = (data.draw(sizes) for _ in range(3))
    make = data.draw(draw.sampled_from([random_rows, testing.tied_inputs]))
    inputs = make(rows, columns, dim, dtype=data.draw(draw.sampled_from(list(ACCUMULATE))))
    query, reference = (testing.with_layout(x, data.draw(layouts)) for x in inputs[:2])
    scale = data.draw(draw.sampled_from([-1, 1])) * 10 ** data.draw(draw.floats(-2, 2))
    exclude_index = labels(rows, columns + 1, seed=3) - 1 if data.draw(draw.booleans()) else None
    check(inputs._replace(query=query, reference=reference), backend, scale, data.draw(draw.sampled_from(AMONG)),
          exclude_index, classes=data.draw(draw.sampled_from([1, 4, 500])))  # fmt: skip


def random_rows(rows, columns, dim, dtype):
    return testing.random_inputs((rows, dim), (columns, dim), dtype=dtype)


@backends
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 0, 4), (0, 5, 4), (2, 129, 130), (70, 2100, 9), (300, 9000, 2)], ids=str
)
def test_shapes(shape, backend):
    """The last one takes several bands of references in the dense backward pass."""
    rows, columns, dim = shape
    check(testing.random_inputs((rows, dim), (columns, dim)), backend, 2.0, "all")


@backends
def test_many_active_pairs_and_few(backend):
    """A small scale keeps every pair, a large one few: both ways of the backward pass."""
    inputs = testing.random_inputs((40, 64), (600, 64))
    for scale in (0.1, 50.0):
        check(inputs, backend, scale, "all")


@backends
def test_a_row_without_pairs_is_minus_infinity_with_zero_gradients(backend):
    inputs = testing.random_inputs((3, 5), (4, 5))
    query = inputs.query.clone().requires_grad_()
    value = fused_dissim_logsumexp(query, *inputs[1:], query_labels=torch.tensor([0, 1, 0]),
                                   reference_labels=torch.zeros(4, dtype=torch.long), backend=backend)  # fmt: skip
    assert value.isneginf().tolist() == [True, False, True]
    (grad,) = torch.autograd.grad(value, query, torch.ones(3))
    assert (grad[[0, 2]] == 0).all() and (grad[1] != 0).any()


@backends
@pytest.mark.parametrize("columns", [3, 300])
@pytest.mark.parametrize("special", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_and_infinity_are_those_of_torch(backend, columns, special, sign):
    """In a reference, and in a query, whose scores are then all NaN or all infinite."""
    query, reference = testing.random_inputs((3, 5), (columns, 5))[:2]
    reference[columns // 2, 1] = special
    query[1, 2] = special
    weight = sign * torch.rand(5)
    found, expected = (query.clone().requires_grad_() for _ in range(2))
    value = fused_dissim_logsumexp(found, reference, weight, among="all", backend=backend)
    plain = testing.plain_score(expected, reference, weight).logsumexp(1)
    torch.testing.assert_close(value, plain, equal_nan=True)
    value.sum().backward()
    plain.sum().backward()
    # torch's gradient of a row of scores that are all minus infinity is NaN; ours is 0, as that of an empty row.
    wanted = torch.where(plain.isneginf()[:, None], 0, expected.grad)
    torch.testing.assert_close(found.grad, wanted, equal_nan=True)


def test_dropped_pairs_hold_less_than_a_rounding():
    """The bits that are 0 belong to pairs that together hold less than u of their row (E15)."""
    inputs = testing.random_inputs((20, 32), (5000, 32))
    for scale in (3.0, 20.0, 200.0):
        factor = torch.tensor([scale])
        _, _, active = logsumexp(*inputs[:3], inputs.bias[None], factor, None, None, None, "all", "cpu")
        bits = (active[:, :, None] >> torch.arange(8) & 1).flatten(1)[:, :5000].bool()
        share = (scale * testing.plain_score(*inputs.double())).softmax(1)
        assert torch.where(bits, 0, share).sum(1).max() <= 2**-24
        assert scale < 20 or bits.double().mean() < 0.5


def test_results_do_not_depend_on_the_number_of_threads():
    inputs = testing.random_inputs((50, 64), (6000, 64))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            leaves = [x.clone().requires_grad_() for x in inputs]
            value = fused_dissim_logsumexp(*leaves, scale=5.0, among="all")
            results.append([value.detach(), *torch.autograd.grad(value.sum(), leaves)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_labels_scale_and_among_are_checked():
    inputs = testing.random_inputs((3, 5), (4, 5))
    with pytest.raises(ValueError, match="query_labels: expected labels, for among='different', got None"):
        fused_dissim_logsumexp(*inputs)
    with pytest.raises(ValueError, match="among: expected one of 'different', 'same', 'all', got 'none'"):
        fused_dissim_logsumexp(*inputs, among="none")
    with pytest.raises(TypeError, match="scale: expected a number, got str"):
        fused_dissim_logsumexp(*inputs, among="all", scale="1")
    with pytest.raises(ValueError, match=r"scale: expected a number or shape \[\], got shape \[2\]"):
        fused_dissim_logsumexp(*inputs, among="all", scale=torch.ones(2))


def test_second_derivative_and_forward_mode_raise():
    query, reference, weight, _ = testing.random_inputs((3, 5), (4, 5))
    leaf = query.clone().requires_grad_()
    value = fused_dissim_logsumexp(leaf, reference, weight, among="all")
    (grad,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative is not available"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match="forward-mode derivative is not available"):
        torch.func.jvp(lambda q: fused_dissim_logsumexp(q, reference, weight, among="all"), (query,), (query,))


def test_it_is_the_hinge_of_the_hardest_negative_in_the_limit():
    inputs = testing.random_inputs((8, 16), (30, 16))
    scores = fused_dissim_score(*inputs)
    value = fused_dissim_logsumexp(*inputs, scale=1e4, among="all") / 1e4
    torch.testing.assert_close(value, scores.amax(1), atol=1e-3, rtol=0)
