"""The pair classifier: its score, its initial values, its constraints."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from dissim_retrieval.head import DissimilarityHead


@pytest.mark.parametrize("normalize", [True, False])
def test_score_is_a_linear_classifier_of_absolute_differences(normalize):
    torch.manual_seed(0)
    head = DissimilarityHead(16, normalize=normalize, scale=3.0)
    torch.nn.init.normal_(head.weight)
    query, reference = torch.randn(5, 16), torch.randn(7, 16)
    q, r = (3 * F.normalize(x, dim=-1) if normalize else x for x in (query, reference))
    expected = F.linear((q[:, None] - r[None]).abs(), head.weight, head.bias[0])
    torch.testing.assert_close(head(query, reference), expected)


def test_half_precision_scores_zero_and_large_rows_as_float32_does():
    """A norm of 90,510 overflows float16, and the 1e-12 that keeps a zero row from 0 / 0 underflows."""
    head = DissimilarityHead(512)
    half = copy.deepcopy(head).half()
    rows = torch.full((3, 512), 4000.0)
    rows[1, :256] = -4000
    rows[2] = 0
    scores = half(rows.half(), rows.half())
    assert scores.dtype == torch.float16
    torch.testing.assert_close(scores.float(), head(rows, rows), rtol=0.01, atol=0.01)
    assert half.transform(rows.bfloat16()).dtype == torch.bfloat16


def test_arrays_and_lists_are_scored_as_tensors_are():
    head, rows = DissimilarityHead(4), torch.randn(3, 4)
    for converted in (rows.numpy(), rows.double().numpy(), rows.tolist()):
        assert torch.equal(head(converted, converted), head(rows, rows))


@pytest.mark.parametrize("wrong", ["rows", [[1.0], [1.0, 2.0]], [["a"]]], ids=repr)
def test_what_is_no_embedding_is_named(wrong):
    with pytest.raises(TypeError, match="query: expected a tensor, NumPy array or list"):
        DissimilarityHead(4)(wrong, torch.randn(3, 4))


def test_initial_head_ranks_as_l1_and_scores_equal_rows_with_the_margin():
    head = DissimilarityHead(9, radius=2.0, normalize=False)
    query = torch.randn(4, 9)
    torch.testing.assert_close(head.weight.norm().item(), 2.0)
    torch.testing.assert_close(head(query, query), 1 - 2 / 3 * torch.cdist(query, query, p=1), atol=1e-5, rtol=1e-5)


def test_initial_bias_and_share_of_positive_weights():
    head = DissimilarityHead(8, radius=2.0, positive_share=0.25, initial_bias=-0.5, normalize=False)
    magnitude = 2 / 8**0.5
    torch.testing.assert_close(head.weight.detach(), torch.tensor([magnitude] * 2 + [-magnitude] * 6))
    assert head(torch.ones(1, 8), torch.ones(1, 8)).item() == -0.5
    with torch.no_grad():
        head.weight.zero_()
    head.constrain_()
    assert (head.weight > 0).tolist() == [True] * 2 + [False] * 6


@pytest.mark.parametrize("constraint", ["project", "cap", "penalty", "none"])
def test_weights_that_are_not_learned_stay_an_l1_distance(constraint):
    """Adam with weight decay, because a plain gradient step would hide a decay of weights without gradient."""
    head = DissimilarityHead(6, learn_weight=False, constraint=constraint, normalize=False)
    start = head.weight.detach().clone()
    query = torch.randn(3, 6)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        head(query, query).sum().backward()
        optimizer.step()
    assert torch.equal(head.weight, start) and head.bias.item() != 1
    torch.testing.assert_close(head(query, query), head.bias - torch.cdist(query, query, p=1) / 6**0.5)


@pytest.mark.parametrize("sign", ["free", "negative"])
@pytest.mark.parametrize("constraint", ["project", "cap", "penalty", "none"])
def test_constraints_hold_after_every_step(constraint, sign):
    """After each of 30 steps in random directions, the norm and the signs are as the options say."""
    torch.manual_seed(1)
    head = DissimilarityHead(33, constraint=constraint, radius=1.5, sign=sign)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.2)
    norms = []
    for _ in range(30):
        (head.weight @ torch.randn(33)).backward()
        optimizer.step()
        optimizer.zero_grad()
        norms.append(head.weight.detach().double().norm().item())
        if sign == "negative":
            assert (head.weight <= 0).all()
    ulps = 4 * torch.finfo(torch.float32).eps * 1.5
    if constraint == "project":
        assert all(abs(norm - 1.5) <= ulps for norm in norms)
    elif constraint == "cap":
        assert max(norms) <= 1.5 + ulps and max(norms) > 1.4
    else:
        assert max(norms) > 2
    if sign == "free":
        assert (head.weight > 0).any()


def test_penalty_pulls_the_norm_to_the_radius():
    head = DissimilarityHead(8, constraint="penalty", radius=2.0)
    assert head.penalty().item() == pytest.approx(0, abs=1e-10)
    with torch.no_grad():
        head.weight.mul_(1.5)
    head.penalty().backward()
    assert head.penalty().item() == pytest.approx(1.0)
    torch.testing.assert_close(head.weight.grad, 2 * head.weight.detach() / 3)
    assert DissimilarityHead(8, constraint="project").penalty().item() == 0


def test_weights_projected_to_zero_are_reinitialized():
    head = DissimilarityHead(4, sign="negative")
    start = head.weight.detach().clone()
    with torch.no_grad():
        head.weight.fill_(1.0)
    head.constrain_()
    torch.testing.assert_close(head.weight.detach(), start)


def test_state_dict_round_trip():
    first, second = DissimilarityHead(6), DissimilarityHead(6)
    with torch.no_grad():
        first.weight.normal_()
        first.bias.fill_(-3.0)
    second.load_state_dict(first.state_dict())
    query = torch.randn(3, 6)
    assert torch.equal(first(query, query), second(query, query))


def test_options_build_another_head():
    changed = {"constraint": "cap", "radius": 2.0, "normalize": False, "scale": 3.0, "positive_share": 0.5}
    for options in (changed | {"initial_bias": 2.0}, {"sign": "negative", "learn_weight": False}):
        head = DissimilarityHead(4, **options)
        again = DissimilarityHead(4, **head.options())
        assert options.items() <= again.options().items() and again.options() == head.options()
        assert torch.equal(again.weight, head.weight) and torch.equal(again.bias, head.bias)


@pytest.mark.parametrize("wrong", [
    {"constraint": "norm"}, {"sign": "positive"}, {"radius": 0.0}, {"scale": -1.0}, {"positive_share": 1.5},
    {"positive_share": 0.1, "sign": "negative"}, {"positive_share": 0.1, "learn_weight": False},
    {"initial_bias": float("nan")}, {"positive_share": float("nan")}, {"radius": float("nan")},
    {"scale": float("inf")},
])  # fmt: skip
def test_wrong_options_are_named(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: expected .* got "):
        DissimilarityHead(4, **wrong)


def test_only_trained_heads_and_copies_are_constrained():
    head = DissimilarityHead(4)
    other, copied, pickled = DissimilarityHead(4), copy.deepcopy(head), pickle.loads(pickle.dumps(head))
    with torch.no_grad():
        for one in (head, other, copied, pickled):
            one.weight.mul_(3)
    for one in (head, copied, pickled):
        one.weight.grad = torch.zeros(4)
        torch.optim.SGD([one.weight], lr=1.0).step()
        assert one.weight.norm().item() == pytest.approx(1)
    assert other.weight.norm().item() == pytest.approx(3)


def test_deleted_heads_are_released():
    deleted = weakref.ref(DissimilarityHead(4))
    gc.collect()
    assert deleted() is None
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    torch.optim.SGD([parameter], lr=0.5).step()
    assert parameter.item() == 0.5
