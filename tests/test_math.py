"""The identities of MATH.md, one test each, in float64."""

import re
from pathlib import Path

import pytest
import torch

import dissim_kernels
from dissim_kernels import testing as judge
from dissim_kernels.backends import reference as backend

MATH = (Path(dissim_kernels.__file__).parent / "MATH.md").read_text()
N, M, D = 7, 9, 11
INPUTS = judge.random_inputs((N, D), (M, D), dtype=torch.float64)
Q, R, W, B = INPUTS
UPSTREAM = torch.randn(N, M, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close(left, right, scale=1.0):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12 * scale)


def gradients(inputs=INPUTS, upstream=UPSTREAM):
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(judge.plain_score(*leaves), leaves, upstream)


def sums(query=Q, reference=R, upstream=UPSTREAM):
    """A [N, D] and B [M, D]."""
    sign = (query[:, None] - reference).sign()
    return torch.einsum("nm,nmd->nd", upstream, sign), torch.einsum("nm,nmd->md", upstream, sign)


def test_e1_definition():
    heads = judge.random_inputs((N, D), (M, D), 3, torch.float64)
    q, r, w, b = heads
    by_hand = [[[sum(w[c, d] * abs(q[n, d] - r[m, d]) for d in range(D)) + b[c] for c in range(3)]
                for m in range(M)] for n in range(N)]  # fmt: skip
    close(judge.plain_score(*heads), torch.tensor(by_hand, dtype=torch.float64))
    close(backend.score(q[None], r[None], w, b)[0].permute(1, 2, 0), judge.plain_score(*heads))


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_e2_gradients_from_two_sums(offset):
    inputs = INPUTS._replace(query=Q + offset, reference=R + offset)
    q, r = inputs[:2]
    (a, b), found = sums(q, r), gradients(inputs)
    centre = r.mean(0)
    of_weight = ((q - centre) * a).sum(0) - ((r - centre) * b).sum(0)
    for formula, gradient in zip((W * a, -W * b, of_weight, UPSTREAM.sum()), found, strict=True):
        close(formula, gradient, scale=10)
    close(a.sum(0), b.sum(0))


def test_e3_sign_of_zero_and_nan_is_zero():
    x = torch.tensor([-2.0, -0.0, 0.0, 3.0, torch.nan]).double().requires_grad_()
    x.abs().sum().backward()
    assert x.grad.tolist() == [-1, 0, 0, 1, 0] and ((x > 0).double() - (x < 0).double()).tolist() == x.grad.tolist()


def test_e4_swap():
    close(judge.plain_score(Q, R, W, B), judge.plain_score(R, Q, W, B).T)


def test_e5_shift():
    shift = torch.linspace(-5, 5, D, dtype=torch.float64)
    close(judge.plain_score(Q + shift, R + shift, W, B), judge.plain_score(*INPUTS))
    of_query, of_reference, *_ = gradients()
    close(of_query.sum(0), -of_reference.sum(0))


def test_e6_three_gradients_agree():
    of_query, of_reference, of_weight, _ = gradients()
    close((Q * of_query).sum(0) + (R * of_reference).sum(0), W * of_weight, scale=10)


def test_e7_max_form():
    largest = torch.maximum(Q[:, None], R) @ W
    close(2 * largest - (Q @ W)[:, None] - R @ W + B, judge.plain_score(*INPUTS), scale=10)


def test_e8_two_distances():
    plus, minus = W.clamp(min=0), (-W).clamp(min=0)
    distances = [torch.cdist(Q * part, R * part, p=1) for part in (plus, minus)]
    close(B + distances[0] - distances[1], judge.plain_score(*INPUTS))


def test_e9_rounding_bound():
    """Any order of sums stays within it; the worst order of the worst sums comes near enough for it to bite."""
    inputs = judge.random_inputs((N, 500), (M, 500))
    exact, bound = judge.plain_score(*inputs.double()), judge.score_bound(*inputs)
    q, r, w, b = inputs
    for order in (torch.arange(500), torch.arange(500).flip(0), torch.randperm(500)):
        one_by_one = sum((w[d] * (q[:, None, d] - r[:, d]).abs() for d in order), torch.zeros(N, M)) + b
        judge.assert_within(one_by_one, exact, bound)
    ones = judge.Inputs(torch.full((1, 4096), 1 / 3), torch.zeros(1, 4096), torch.ones(4096))
    total = torch.zeros(1, 1)
    for _ in range(4096):
        total += 1 / 3
    assert (total - judge.plain_score(*ones.double())).abs() > judge.score_bound(*ones) / 100


def test_e10_bound_of_quantized_rows():
    coarse = [(x * 8).round() / 8 for x in (Q, R)]
    error = [(x - y).abs() @ W.abs() for x, y in zip((Q, R), coarse, strict=True)]
    gap = (judge.plain_score(Q, R, W, B) - judge.plain_score(*coarse, W, B)).abs()
    bound = error[0][:, None] + error[1]
    assert (gap <= bound).all() and (gap > bound / 10).any() and (W < 0).any() and (W > 0).any()


def test_e11_one_sign_is_a_plain_l1_distance():
    for sign in (-1, 1):
        distance = torch.cdist(Q * W.abs(), R * W.abs(), p=1)
        close(B + sign * distance, judge.plain_score(Q, R, sign * W.abs(), B))


def test_e12_gradient_of_the_hinge_is_one_bit_a_pair():
    labels = torch.arange(N) % 3, torch.arange(M) % 3
    scores = judge.plain_score(*INPUTS).requires_grad_()
    judge.plain_hinge_loss(scores, *labels).backward()
    y = torch.where(labels[0][:, None] == labels[1], 1.0, -1.0).double()
    active = y * scores < 1
    assert active.any() and not active.all()
    assert torch.equal(scores.grad == 0, ~active)
    close(scores.grad, -y * active / (N * M))
    margin = torch.ones(1, 1, requires_grad=True)
    judge.plain_hinge_loss(margin, torch.tensor([0]), torch.tensor([0])).backward()
    assert margin.grad == 0


def test_e13_directional_and_second_derivatives():
    heads = judge.random_inputs((2, N, D), (2, M, D), 3, torch.float64)
    along, change = judge.random_inputs((2, N, D), (2, M, D), 3, torch.float64, seed=4), heads
    bases, directions = tuple(heads), tuple(along)

    def value(*x):
        return judge.plain_score(*x).movedim(-1, 1)

    def formula(*x):
        return backend.score_jvp(x[:4], x[4:])

    close(formula(*bases, *directions), torch.func.jvp(value, bases, directions)[1], scale=10)
    (q, r, w, _), (tq, tr, tw, _), (dq, dr, dw, _) = bases, directions, change
    three = (
        formula(*bases, *change)
        + backend.score_jvp((q, r, dw), (tq, tr, torch.zeros_like(w)))
        + backend.score_jvp((q, r, tw), (dq, dr, torch.zeros_like(w)))
    )
    nested = torch.func.jvp(lambda *x: torch.func.jvp(value, x[:4], x[4:])[1], bases + directions,
                            (*change, *change))[1]  # fmt: skip
    close(three, nested, scale=10)

    leaves = [x.clone().requires_grad_() for x in (UPSTREAM, Q, R, W)]
    g, q, r, w = leaves
    found = torch.autograd.grad(judge.plain_score(q, r, w), (q, r, w), g, create_graph=True)
    vq, vr, vw = (torch.randn_like(x) for x in found)
    phi = sum((v * x).sum() for v, x in zip((vq, vr, vw), found, strict=True))
    second = torch.autograd.grad(phi, leaves)
    a, b = sums()
    jvp = backend.score_jvp((Q[None], R[None], W[None]), (vq[None], vr[None], vw[None]))[0, 0]
    expected = (jvp, vw * a, -vw * b, (vq * a).sum(0) - (vr * b).sum(0))
    for formula_of, gradient in zip(expected, second, strict=True):
        close(formula_of, gradient, scale=10)


def test_e14_clamping_adds_a_constant():
    low, high = R.amin(0), R.amax(0)
    clamped = (3 * Q).clamp(low, high)
    assert (clamped != 3 * Q).any() and (clamped == 3 * Q).any()
    constant = (3 * Q - clamped).abs() @ W
    close(constant[:, None] + judge.plain_score(clamped, R, W, B), judge.plain_score(3 * Q, R, W, B), scale=10)


def test_every_identity_has_a_test_and_the_files_it_names():
    stated = set(re.findall(r"^\*\*(E\d+)\.\*\*", MATH, re.M))
    tested = {name.split("_")[1].upper() for name in globals() if re.match(r"test_e\d+_", name)}
    assert stated == tested == {f"E{i}" for i in range(1, 15)}
    package = Path(dissim_kernels.__file__).parent
    for name in re.findall(r"[\w/]+\.(?:py|cpp|h)\b", MATH):
        assert any((folder / name).exists() for folder in (package.parent, package, package.parent / "csrc")) or list(
            (package.parent / "csrc").rglob(Path(name).name)
        ), name
