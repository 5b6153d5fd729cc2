"""The formulas of MATH.md in float64: at least one test each, named after its number."""

import math
import re
from pathlib import Path

import pytest
import torch

import dissim_kernels
from dissim_kernels import testing
from dissim_kernels.backends import reference as backend

PACKAGE = Path(dissim_kernels.__file__).parent
MATH = (PACKAGE / "MATH.md").read_text()
N, M, D = 7, 9, 11
INPUTS = testing.random_inputs((N, D), (M, D), dtype=torch.float64)
Q, R, W, B = INPUTS
UPSTREAM = torch.randn(N, M, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_close(left, right, scale=1.0):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12 * scale)


def gradients(inputs=INPUTS, upstream=UPSTREAM):
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(testing.plain_score(*leaves), leaves, upstream)


def sign_sums(query=Q, reference=R, upstream=UPSTREAM):
    """A [N, D] and B [M, D] of E2."""
    sign = (query[:, None] - reference).sign()
    return torch.einsum("nm,nmd->nd", upstream, sign), torch.einsum("nm,nmd->md", upstream, sign)


def test_e1_definition():
    inputs = testing.random_inputs((N, D), (M, D), 3, torch.float64)
    q, r, w, b = inputs
    by_loops = [[[sum(w[c, d] * abs(q[n, d] - r[m, d]) for d in range(D)) + b[c] for c in range(3)]
                 for m in range(M)] for n in range(N)]  # fmt: skip
    assert_close(testing.plain_score(*inputs), torch.tensor(by_loops, dtype=torch.float64))
    assert_close(backend.score(q[None], r[None], w, b)[0].permute(1, 2, 0), testing.plain_score(*inputs))


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_e2_gradients_from_two_sums(offset):
    inputs = INPUTS._replace(query=Q + offset, reference=R + offset)
    q, r = inputs[:2]
    a, b = sign_sums(q, r)
    center = r.mean(0)
    grad_weight = ((q - center) * a).sum(0) - ((r - center) * b).sum(0)
    by_formula = (W * a, -W * b, grad_weight, UPSTREAM.sum())
    for formula, gradient in zip(by_formula, gradients(inputs), strict=True):
        assert_close(formula, gradient, scale=10)
    assert_close(a.sum(0), b.sum(0))


def test_e3_sign_of_zero_and_nan_is_zero():
    x = torch.tensor([-2.0, -0.0, 0.0, 3.0, torch.nan]).double().requires_grad_()
    x.abs().sum().backward()
    by_comparison = (x > 0).double() - (x < 0).double()
    assert x.grad.tolist() == by_comparison.tolist() == [-1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("dtype", "scale", "smallest"), [(torch.float32, 2.0**60, 2.0**-36), (torch.float64, 2.0**500, 2.0**-440)]
)
def test_e3_sign_as_the_minimum_of_a_scaled_difference_and_one(dtype, scale, smallest):
    """The method for AVX-512, at the smallest values for which it may be used."""
    largest = 2.0**127 / scale if dtype == torch.float32 else 2.0**1023 / scale
    values = torch.tensor([0.0, smallest, 1.0, largest], dtype=dtype)
    upward = torch.nextafter(values[1:], values.new_tensor(math.inf))
    values = torch.cat((values, upward[:-1], -values, -upward[:-1]))
    difference = scale * values[:, None] - scale * values
    assert torch.equal(difference.clamp(-1, 1), (values[:, None] - values).sign())


def test_e3_negating_the_integer_of_two_negates_the_number():
    """The method for AVX2: 2.0 is the only positive number that integer negation turns into its negative."""
    two = torch.tensor(2.0)
    assert two.view(torch.int32).item() == 0x40000000
    assert (-two.view(torch.int32)).view(torch.float32) == -2
    others = torch.tensor([1.0, 1.5, 4.0, 3.0])
    assert ((-others.view(torch.int32)).view(torch.float32) != -others).all()


def test_e3_sign_from_integer_keys():
    """The method for CUDA: numbers below 2**64 have keys whose differences fit in int32."""
    largest = 2.0**64 * (1 - 2.0**-24)
    values = torch.tensor([0.0, -0.0, 2.0**-60, 1.0, 1 + 2.0**-23, largest])
    values = torch.cat((values, -values))
    bits = (values * 2.0**-64).view(torch.int32).long()
    keys = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    differences = keys[:, None] - keys
    assert differences.abs().max() + 1 < 2**31
    assert torch.equal((differences + 1).clamp(0, 2) - 1, (values[:, None] - values).sign().long())
    unit = torch.tensor([0, 1, 2], dtype=torch.int32).view(torch.float32).double()
    assert (unit * 2.0**120 * 2.0**29).tolist() == [0, 1, 2]


def test_e4_swap():
    assert_close(testing.plain_score(Q, R, W, B), testing.plain_score(R, Q, W, B).T)


def test_e5_shift():
    shift = torch.linspace(-5, 5, D, dtype=torch.float64)
    assert_close(testing.plain_score(Q + shift, R + shift, W, B), testing.plain_score(*INPUTS))
    grad_query, grad_reference, *_ = gradients()
    assert_close(grad_query.sum(0), -grad_reference.sum(0))


def test_e6_three_gradients_agree():
    grad_query, grad_reference, grad_weight, _ = gradients()
    assert_close((Q * grad_query).sum(0) + (R * grad_reference).sum(0), W * grad_weight, scale=10)


def test_e7_max_form():
    sums = torch.maximum(Q[:, None], R) @ W
    assert_close(2 * sums - (Q @ W)[:, None] - R @ W + B, testing.plain_score(*INPUTS), scale=10)


@pytest.mark.parametrize("offset", [0.0, 2.0, 5.0])
def test_e7_pairs_that_pass_the_condition_are_within_the_rounding_bound(offset):
    """In slices and float32 as on x86, for weights of one sign, with and without an offset."""
    dim, length = 512, 32
    slices = dim // length + 2
    threshold = (length + length / 4 + 8) / (dim - slices)
    plain = testing.random_inputs((20, dim), (30, dim), bias=False)
    inputs = testing.Inputs(plain.query + offset, plain.reference + offset, plain.weight.abs())
    q, r, w, _ = inputs
    half_sum = torch.zeros(20, 30)
    for first in range(0, dim, length):
        part = slice(first, first + length)
        partial = (-q[:, part] @ w[part] / 2)[:, None] + -r[:, part] @ w[part] / 2
        for d in range(first, first + length):
            partial = partial + w[d] * torch.maximum(q[:, d, None], r[:, d])
        half_sum += partial
    score = distance = 2 * half_sum
    size = (q.abs() @ w)[:, None] + r.abs() @ w
    passes = distance >= threshold * size
    assert passes.all() if offset < 5 else passes.any()
    exact, bound = testing.plain_score(*inputs.double()), testing.score_bound(*inputs)
    testing.assert_within(score[passes], exact[passes], bound[passes])


def test_e8_two_distances():
    positive, negative = W.clamp(min=0), (-W).clamp(min=0)
    distances = [torch.cdist(Q * part, R * part, p=1) for part in (positive, negative)]
    assert_close(B + distances[0] - distances[1], testing.plain_score(*INPUTS))


def test_e9_rounding_bound():
    """Sums in any order stay within the bound, and some come within a factor of 100 of it."""
    inputs = testing.random_inputs((N, 500), (M, 500))
    exact, bound = testing.plain_score(*inputs.double()), testing.score_bound(*inputs)
    q, r, w, b = inputs
    for order in (torch.arange(500), torch.arange(500).flip(0), torch.randperm(500)):
        one_by_one = sum((w[d] * (q[:, None, d] - r[:, d]).abs() for d in order), torch.zeros(N, M)) + b
        testing.assert_within(one_by_one, exact, bound)
    ones = testing.Inputs(torch.full((1, 4096), 1 / 3), torch.zeros(1, 4096), torch.ones(4096))
    total = torch.zeros(1, 1)
    for _ in range(4096):
        total += 1 / 3
    assert (total - testing.plain_score(*ones.double())).abs() > testing.score_bound(*ones) / 100


def test_e10_bound_for_quantized_rows():
    quantized = [(x * 8).round() / 8 for x in (Q, R)]
    errors = [(x - y).abs() @ W.abs() for x, y in zip((Q, R), quantized, strict=True)]
    gap = (testing.plain_score(Q, R, W, B) - testing.plain_score(*quantized, W, B)).abs()
    bound = errors[0][:, None] + errors[1]
    assert (gap <= bound).all() and (gap > bound / 10).any() and (W < 0).any() and (W > 0).any()


def test_e10_bounds_and_thresholds_fit_in_int32():
    sums, row_error, unbounded = 255 * (2**19 - 1), 2**27, 2**29
    lowest, largest_threshold = -(2**30), 2**28
    assert sums + row_error < largest_threshold < unbounded - sums
    assert -sums - unbounded > lowest
    assert sums - unbounded < -(2**28) < -sums - row_error, "every row passes if the k-th lower bound is unbounded"
    assert sums + unbounded < 2**31


def test_e11_one_sign_is_an_l1_distance():
    for sign in (-1, 1):
        distance = torch.cdist(Q * W.abs(), R * W.abs(), p=1)
        assert_close(B + sign * distance, testing.plain_score(Q, R, sign * W.abs(), B))


def test_e12_hinge_gradient_is_one_bit_per_pair():
    query_labels, reference_labels = torch.arange(N) % 3, torch.arange(M) % 3
    scores = testing.plain_score(*INPUTS).requires_grad_()
    testing.plain_hinge_loss(scores, query_labels, reference_labels).backward()
    y = torch.where(query_labels[:, None] == reference_labels, 1.0, -1.0).double()
    active = y * scores < 1
    assert active.any() and not active.all()
    assert torch.equal(scores.grad == 0, ~active)
    assert_close(scores.grad, -y * active / (N * M))
    at_margin = torch.ones(1, 1, requires_grad=True)
    testing.plain_hinge_loss(at_margin, torch.tensor([0]), torch.tensor([0])).backward()
    assert at_margin.grad == 0


def test_e13_directional_and_nested_derivatives():
    inputs = testing.random_inputs((2, N, D), (2, M, D), 3, torch.float64)
    direction = testing.random_inputs((2, N, D), (2, M, D), 3, torch.float64, seed=4)
    inputs, direction = tuple(inputs), tuple(direction)

    def value(*x):
        return testing.plain_score(*x).movedim(-1, 1)

    def formula(*x):
        return backend.score_jvp(x[:4], x[4:])

    assert_close(formula(*inputs, *direction), torch.func.jvp(value, inputs, direction)[1], scale=10)
    # The inputs and the direction itself move along `change`.
    change = inputs
    (q, r, w, _), (tq, tr, tw, _), (dq, dr, dw, _) = inputs, direction, change
    three_terms = (
        formula(*inputs, *change)
        + backend.score_jvp((q, r, dw), (tq, tr, torch.zeros_like(w)))
        + backend.score_jvp((q, r, tw), (dq, dr, torch.zeros_like(w)))
    )
    nested = torch.func.jvp(lambda *x: torch.func.jvp(value, x[:4], x[4:])[1], inputs + direction,
                            (*change, *change))[1]  # fmt: skip
    assert_close(three_terms, nested, scale=10)


def test_e13_second_derivatives():
    leaves = [x.clone().requires_grad_() for x in (UPSTREAM, Q, R, W)]
    g, q, r, w = leaves
    first = torch.autograd.grad(testing.plain_score(q, r, w), (q, r, w), g, create_graph=True)
    vq, vr, vw = (torch.randn_like(x) for x in first)
    phi = sum((v * x).sum() for v, x in zip((vq, vr, vw), first, strict=True))
    second = torch.autograd.grad(phi, leaves)
    a, b = sign_sums()
    jvp = backend.score_jvp((Q[None], R[None], W[None]), (vq[None], vr[None], vw[None]))[0, 0]
    by_formula = (jvp, vw * a, -vw * b, (vq * a).sum(0) - (vr * b).sum(0))
    for formula, gradient in zip(by_formula, second, strict=True):
        assert_close(formula, gradient, scale=10)


def test_e14_clamping_adds_a_constant():
    low, high = R.amin(0), R.amax(0)
    query = 3 * Q
    clamped = query.clamp(low, high)
    assert (clamped != query).any() and (clamped == query).any()
    constant = (query - clamped).abs() @ W
    assert_close(constant[:, None] + testing.plain_score(clamped, R, W, B), testing.plain_score(query, R, W, B), 10)


@pytest.mark.parametrize("scale", [0.3, -2.0])
def test_e15_derivatives_of_the_log_sum_exp(scale):
    kept = torch.rand(N, M, generator=torch.Generator().manual_seed(2)) < 0.7
    kept[0] = False
    scores = testing.plain_score(*INPUTS).requires_grad_()
    factor = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    value = testing.plain_logsumexp(scores, kept, factor)
    assert torch.equal(value.isneginf(), ~kept.any(1)) and value[0].isneginf()
    grad_scores, grad_scale = torch.autograd.grad(value[1:].sum(), (scores, factor))
    share = torch.where(kept, (scale * scores - value[:, None]).exp(), 0).detach()[1:]
    assert_close(grad_scores[1:], scale * share)
    assert_close(grad_scale, (share * scores[1:]).sum())
    assert_close(grad_scores[1:].sum(1), torch.full((N - 1,), scale, dtype=torch.float64))


def test_e15_sums_of_chunks_are_the_sum_of_the_row():
    """Each with its own maximum; one chunk has no pair."""
    logits = torch.cat((3 * testing.plain_score(*INPUTS), torch.full((N, 2), -math.inf).double()), 1)
    largest, total = torch.full((N,), -math.inf).double(), torch.zeros(N).double()
    for chunk in logits.split(3, 1):
        higher = torch.maximum(largest, chunk.amax(1))
        total = total * (largest - higher).exp() + (chunk - higher[:, None]).exp().sum(1)
        largest = higher
    assert_close(total.log() + largest, logits.logsumexp(1))


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
@pytest.mark.parametrize("spread", [1.0, 5.0, 30.0])
def test_e15_dropped_pairs_hold_at_most_one_rounding(spread, order):
    """A pair is dropped if its term is at most u / M of the sum so far; with the bits of chunks taken back."""
    columns, chunk, u = 3000, 64, 2.0**-24
    logits = spread * torch.randn(columns, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if order != "random":
        logits = logits.sort(descending=order == "descending").values
    terms = (logits - logits.max()).exp()  # any common factor cancels
    active = torch.cat([some > u / columns * some.cumsum(0) for some in terms.split(chunk)])
    for first in range(0, columns, chunk):
        part = slice(first, min(first + chunk, columns))
        if terms[part].sum() <= (part.stop - first) * u / columns * terms.sum():
            active[part] = False
    assert terms[~active].sum() <= u * terms.sum()
    assert spread == 1 or not active.all()


def test_e16_ranks_are_counts_of_all_references_without_the_excluded_ones():
    scores = testing.plain_score(*testing.tied_inputs(N, 40, 3)).double()
    candidate = torch.rand(N, 40, generator=torch.Generator().manual_seed(4)) < 0.8
    assert (scores[:, None] == scores[:, :, None]).sum() > N * 40, "some scores tie"
    column = torch.arange(40)
    higher = scores[:, None, :] > scores[:, :, None]
    tied_before = (scores[:, None, :] == scores[:, :, None]) & (column < column[:, None])
    before = higher | tied_before  # [N, match, other]
    ranks = before.sum(2) - (before & ~candidate[:, None]).sum(2)
    shards = sum(part.sum(2) for part in before.split(7, 2)) - (before & ~candidate[:, None]).sum(2)
    for n in range(N):
        order = [m for m in scores[n].neg().sort(stable=True).indices.tolist() if candidate[n, m]]
        assert ranks[n, order].tolist() == list(range(len(order)))
    assert torch.equal(ranks, shards)


def test_e17_scores_of_a_row_and_its_pivot_differ_by_at_most_the_radius():
    assert (W > 0).any() and (W < 0).any()
    pivots = R + 0.1 * Q.mean(0)
    radius = ((R - pivots).abs() * W.abs()).sum(1)
    gap = (testing.plain_score(Q, R, W, B) - testing.plain_score(Q, pivots, W, B)).abs()
    assert (gap <= radius + 1e-12).all() and (gap > radius / 20).any()
    far = R.amax(0) + 1 + torch.rand(N, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    same_side = R - 0.1 * W.sign()  # every term of the difference has one sign: the bound is reached
    gap = testing.plain_score(far, same_side, W) - testing.plain_score(far, R, W)
    assert_close(gap, 0.1 * W.abs().sum().expand(N, M), scale=10)


def test_every_formula_has_a_test():
    stated = re.findall(r"^### (E\d+) \(", MATH, re.M)
    tested = {name.split("_")[1].upper() for name in globals() if re.match(r"test_e\d+_", name)}
    assert len(stated) == len(set(stated))
    assert set(stated) == tested == {f"E{i}" for i in range(1, 18)}


def test_files_named_in_math_exist():
    for name in set(re.findall(r"[\w/]+\.(?:py|cpp|h|cuh?)\b", MATH)):
        assert any((folder / name).exists() for folder in (PACKAGE, PACKAGE.parent)), name
