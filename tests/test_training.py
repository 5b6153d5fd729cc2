"""The operators in training: checkpointing, offloading, saved tensors, repeated backward passes, hooks."""

import pytest
import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from dissim_kernels import fused_dissim_hinge_loss, fused_dissim_score, paired_dissim_score, testing

INPUTS = testing.random_inputs((12, 5), (18, 5), seed=3)
SIDES = (torch.arange(12) % 4, torch.arange(18) % 4)


def hinge(*arguments):
    return fused_dissim_hinge_loss(*arguments, *SIDES)


#: Functions of query, reference, weight and bias.
FUNCTIONS = {
    "score": lambda q, r, w, b: fused_dissim_score(q, r, w, b).square().sum(),
    "score with itself": lambda q, r, w, b: fused_dissim_score(x := q * r[:12], x, w, b).square().sum(),
    "paired": lambda q, r, w, b: paired_dissim_score(q, r[:12], w, b).square().sum(),
    "hinge": hinge,
    "hinge with itself": lambda q, r, w, b: fused_dissim_hinge_loss(x := q * r[:12], x, w, b, SIDES[0], SIDES[0]),
}
functions = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def leaves(needs=(True,) * 4):
    return [x.clone().requires_grad_(needed) for x, needed in zip(INPUTS, needs, strict=True)]


def gradients(run, backward=torch.Tensor.backward):
    arguments = leaves()
    backward(run(*arguments))
    return [x.grad for x in arguments]


def in_checkpoint(function):
    return lambda *arguments: checkpoint(function, *arguments, use_reentrant=False)


def in_bfloat16(function):
    def run(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return function(*arguments)

    return run


def on_cpu(function):
    def run(*arguments):
        with save_on_cpu():
            return function(*arguments)

    return run


@functions
@pytest.mark.parametrize(
    "wrap",
    [in_checkpoint, on_cpu, lambda f: in_bfloat16(in_checkpoint(f)), lambda f: in_checkpoint(in_bfloat16(f)),
     lambda f: in_checkpoint(in_checkpoint(f))],
    ids=["checkpoint", "save_on_cpu", "autocast of checkpoint", "checkpoint of autocast", "checkpoint of checkpoint"],
)  # fmt: skip
def test_checkpointing_and_offloading_change_no_gradient(wrap, function):
    assert all(map(torch.equal, gradients(wrap(function)), gradients(function)))


def test_second_derivatives_within_a_checkpoint():
    def second(function):
        arguments = leaves()
        first = torch.autograd.grad(function(*arguments), arguments, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), arguments)

    score = FUNCTIONS["score"]
    torch.testing.assert_close(second(in_checkpoint(score)), second(score))
    with pytest.raises(NotImplementedError, match="fused_dissim_hinge_loss: a second derivative is not available"):
        second(in_checkpoint(hinge))


def saved_by(function, needs):
    """Shapes of the tensors that autograd saves for backward, without scalars."""
    shapes = []

    def pack(x):
        shapes.append(tuple(x.shape))
        return x

    arguments = leaves(needs)
    with saved_tensors_hooks(pack, lambda x: x):
        function(*arguments)
    return [shape for shape in shapes if shape]


ROWS, LABELS = [(12, 5), (18, 5), (5,)], [(12,), (18,), (12, 3)]
BATCHED = [(1, 12, 5), (1, 18, 5), (1, 5)]


@pytest.mark.parametrize(
    ("function", "needs", "expected"),
    [
        (fused_dissim_score, (True, True, True, True), BATCHED),
        (fused_dissim_score, (True, False, False, False), BATCHED),
        (fused_dissim_score, (False, False, False, True), []),
        (fused_dissim_score, (False, False, False, False), []),
        (lambda q, r, w, b: fused_dissim_score(q, q, w, b), (True, True, True, True), [(1, 12, 5), (1, 5)]),
        (hinge, (True, True, True, True), ROWS + LABELS),
        (hinge, (False, False, False, False), []),
        (
            lambda q, r, w, b: fused_dissim_hinge_loss(q, q, w, b, SIDES[0], SIDES[0]),
            (True, True, True, True),
            [(12, 5), (5,), (12,), (12, 2)],
        ),
    ],
)
def test_backward_saves_only_what_it_needs_and_nothing_twice(function, needs, expected):
    assert saved_by(function, needs) == expected


@functions
def test_gradients_accumulate_over_a_retained_graph(function):
    def twice(loss):
        loss.backward(retain_graph=True)
        loss.backward()

    once, both = gradients(function), gradients(function, twice)
    assert all(torch.equal(2 * a, b) for a, b in zip(once, both, strict=True))


def test_hooks_may_replace_gradients():
    def hooked(score):
        arguments = leaves()
        scores = score(*arguments)
        scores.register_hook(lambda grad: grad.flip(0).T.contiguous().T)
        scores.square().sum().backward()
        return [x.grad for x in arguments]

    torch.testing.assert_close(hooked(fused_dissim_score), hooked(testing.plain_score))
