"""Every kind of derivative of torch: each is right, or raises an error that says it is not available."""

import pytest
import torch
from small_inputs import INPUTS, SIDES, fused, hinge_loss, leaves, logsumexp, plain, ranks
from torch.autograd import forward_ad
from torch.autograd.functional import hessian as functional_hessian
from torch.autograd.functional import hvp, jacobian
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from dissim_kernels import fused_dissim_hinge_loss, fused_dissim_score, fused_dissim_topk, testing

backends = pytest.mark.parametrize("backend", testing.runnable_backends())


@backends
def test_first_and_second_derivatives_by_differences(backend):
    """Also batched gradients, which is_grads_batched and vectorize=True use."""
    heads = testing.random_inputs((2, 3, 4), (2, 2, 4), 2, torch.float64, seed=1)
    for inputs in (INPUTS, heads):
        arguments = [x.clone().requires_grad_() for x in inputs]

        def call(*x):
            return fused_dissim_score(*x, backend=backend)

        assert torch.autograd.gradcheck(
            call, arguments, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
        )
        assert torch.autograd.gradgradcheck(call, arguments, check_batched_grad=True)
    assert torch.autograd.gradcheck(
        lambda *x: fused_dissim_hinge_loss(*x, *SIDES, reduction="none", backend=backend),
        leaves(),
        check_batched_grad=True,
    )
    assert torch.autograd.gradcheck(lambda *x: logsumexp(*x, backend=backend), leaves(), check_batched_grad=True)


def test_vectorized_second_derivatives():
    torch.testing.assert_close(
        functional_hessian(fused, tuple(INPUTS), vectorize=True), functional_hessian(plain, tuple(INPUTS))
    )


def test_gradients_of_batched_gradients():
    upstream = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def second(function):
        arguments = leaves()[:3]
        scores = function(*arguments)
        first = torch.autograd.grad(scores, arguments, upstream, is_grads_batched=True, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), arguments)

    torch.testing.assert_close(second(fused_dissim_score), second(testing.plain_score))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_tangent_has_the_dtype_of_the_score(dtype):
    q, r, w, _ = testing.tied_inputs(4, 6, 5, dtype)  # exact, so that the tangent is rounded once
    w, b = w.float(), torch.tensor(0.5)
    primals, along = (q, r, w, b), (q + 1, 3 - r, w * 2, b)

    def with_dual_numbers():
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(fused_dissim_score(*map(forward_ad.make_dual, primals, along)))

    difference, change = (x[:, None].double() - y.double() for x, y in (primals[:2], along[:2]))
    expected = (difference.sign() * change) @ w.double() + difference.abs() @ along[2].double() + b.double()
    for scores, tangent in (jvp(fused_dissim_score, primals, along), with_dual_numbers()):
        assert scores.dtype == tangent.dtype == dtype
        assert torch.equal(tangent, expected.to(dtype))
    by_head = jvp(lambda w: jvp(lambda b: fused_dissim_score(q, r, w, b), (b,), (b,))[1], (w,), (w,))[1]
    assert by_head.dtype == dtype


@pytest.mark.parametrize("argument", range(4))
@pytest.mark.parametrize("transform", [grad, jacrev, jacfwd], ids=["grad", "jacrev", "jacfwd"])
def test_transforms_of_torch_func(transform, argument):
    torch.testing.assert_close(transform(fused, argument)(*INPUTS), transform(plain, argument)(*INPUTS))


@pytest.mark.parametrize("argument", range(4))
@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("transform", [jacrev, jacfwd])
def test_second_derivatives_of_torch_func(transform, first, argument):
    """Reverse over reverse and forward over forward, give no silent zero. The mixtures raise, see below."""
    ours, theirs = (transform(transform(f, first), argument)(*INPUTS) for f in (fused, plain))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mapped", [(0, None, None, None), (None, 0, None, None), (None, None, 0, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize(
    "function",
    [fused_dissim_score, hinge_loss, lambda *x: fused_dissim_topk(*x, k=2), grad(fused), grad(fused, 2),
     grad(hinge_loss), lambda *x: jvp(fused, x, x)[1], logsumexp, grad(lambda *x: logsumexp(*x).sum(), 1)],
    ids=["score", "hinge", "topk", "grad query", "grad weight", "grad hinge", "jvp", "logsumexp", "grad logsumexp"],
)  # fmt: skip
def test_vmap_equals_a_loop(function, mapped):
    stacked = [x if dim is None else torch.stack((x, x * 2, x + 1)) for x, dim in zip(INPUTS, mapped, strict=True)]
    ours = vmap(function, mapped)(*stacked)
    for i in range(3):
        alone = function(*(x if dim is None else x[i] for x, dim in zip(stacked, mapped, strict=True)))
        torch.testing.assert_close([x[i] for x in ours] if isinstance(ours, tuple) else ours[i],
                                   list(alone) if isinstance(alone, tuple) else alone)  # fmt: skip


class Score(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(INPUTS.weight.clone())

    def forward(self, query, reference):
        return fused_dissim_score(query, reference, self.weight)


def test_per_sample_gradients_of_a_module():
    """By vmap over grad of a functional call, as torch documents it."""
    model, (query, reference) = Score(), INPUTS[:2]

    def loss(parameters, row):
        return functional_call(model, parameters, (row[None], reference)).square().sum()

    rows = vmap(grad(loss), (None, 0))(dict(model.named_parameters()), query)["weight"]
    torch.testing.assert_close(rows.sum(0), grad(fused, 2)(*INPUTS[:3]))


def third_derivative():
    query = leaves()[0]
    first = torch.autograd.grad(fused(query, *INPUTS[1:]), query, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), query, create_graph=True)[0]
    torch.autograd.grad(second.square().sum(), query)


def top_scores(query):
    return fused_dissim_topk(query, *INPUTS[1:], k=2).scores.sum()


def score_of(query):
    return fused(query, *INPUTS[1:])


def hinge_of(query):
    return hinge_loss(query, *INPUTS[1:])


def sum_of_logsumexp(query):
    return logsumexp(query, *INPUTS[1:]).sum()


def rank_scores(query):
    return ranks(query, *INPUTS[1:]).scores.sum()


def second_derivative_of_hinge():
    query = leaves()[0]
    first = torch.autograd.grad(hinge_of(query), query, create_graph=True)[0]
    torch.autograd.grad(first.sum(), query)


def hinge_rows(query):
    return hinge_loss(query, *INPUTS[1:], reduction="none")


def forward_jacobian(function):
    return jacobian(function, Q, vectorize=True, strategy="forward-mode")


Q = INPUTS.query
UNSUPPORTED = {
    "third derivative": (third_derivative, "a third derivative is not available"),
    "hessian": (lambda: hessian(score_of)(Q), "forward-mode over reverse-mode is not available"),
    "jvp of grad": (lambda: jvp(grad(score_of), (Q,), (Q,)), "forward-mode over reverse-mode is not available"),
    "grad of jvp": (lambda: grad(lambda x: jvp(score_of, (x,), (x,))[1])(Q), "nor reverse-mode over forward-mode"),
    "jvp of hinge": (lambda: jvp(hinge_of, (Q,), (Q,)), "hinge_loss: a forward-mode derivative is not"),
    "jacfwd of hinge": (lambda: jacfwd(hinge_of)(Q), "hinge_loss: a forward-mode derivative is not"),
    "double backward of hinge": (second_derivative_of_hinge, "hinge_loss: a second derivative is not"),
    "jacrev of jacrev of hinge": (lambda: jacrev(jacrev(hinge_of))(Q), "hinge_loss: a second derivative is not"),
    "forward-mode Jacobian of hinge": (lambda: forward_jacobian(hinge_rows), "hinge_loss: a forward-mode derivative"),
    "vectorized Hessian of hinge": (
        lambda: functional_hessian(hinge_of, Q, vectorize=True),
        "a second derivative is not",
    ),
    "hvp": (lambda: hvp(score_of, Q, Q), "fused_dissim_score: a third derivative .*vhp, not hvp"),
    "forward-mode Jacobian of top-k": (lambda: forward_jacobian(top_scores), "topk: its scores have no derivative"),
    "backward of top-k": (lambda: top_scores(leaves()[0]).backward(), "topk: its scores have no derivative"),
    "grad of top-k": (lambda: grad(top_scores)(Q), "topk: its scores have no derivative"),
    "jvp of top-k": (lambda: jvp(top_scores, (Q,), (Q,)), "topk: its scores have no derivative"),
    "jvp of logsumexp": (lambda: jvp(sum_of_logsumexp, (Q,), (Q,)), "logsumexp: a forward-mode derivative is not"),
    "jacfwd of logsumexp": (lambda: jacfwd(sum_of_logsumexp)(Q), "logsumexp: a forward-mode derivative is not"),
    "jacrev of jacrev of logsumexp": (
        lambda: jacrev(jacrev(sum_of_logsumexp))(Q),
        "a second derivative is not",
    ),
    "jvp of grad of logsumexp": (lambda: jvp(grad(sum_of_logsumexp), (Q,), (Q,)), "logsumexp: a .* is not"),
    "backward of ranks": (lambda: rank_scores(leaves()[0]).backward(), "rank: a derivative is not implemented"),
    "grad of ranks": (lambda: grad(rank_scores)(Q), "rank: a derivative is not implemented"),
    "jvp of ranks": (lambda: jvp(rank_scores, (Q,), (Q,)), "rank: a derivative is not implemented"),
    "vmap of ranks": (lambda: vmap(rank_scores)(Q[None]), "rank: vmap is not implemented"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_derivatives_raise(name):
    attempt, message = UNSUPPORTED[name]
    with pytest.raises((NotImplementedError, RuntimeError), match=message):
        attempt()


def tangent_by_dual_numbers(function):
    def tangent(x):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(x, x.cos()))).tangent

    return tangent


def tangent_by_jvp(function):
    return lambda x: jvp(function, (x,), (x.cos(),))[1]


IN_GRAPH = {
    "jvp": tangent_by_jvp,
    "dual numbers": tangent_by_dual_numbers,
    "jacfwd": jacfwd,
    "grad": grad,
    "jacrev": jacrev,
    "vmap of grad": lambda function: lambda x: vmap(grad(function))(torch.stack((x, x + 1))),
}


def compiled(function, **options):
    torch.compiler.reset()  # the cases share functions, and torch limits how often one is compiled
    return torch.compile(function, backend="aot_eager", **options)


def expect_that_a_newer_torch_is_asked_for(attempt):
    with pytest.raises(torch._dynamo.exc.InternalTorchDynamoError, match=r"torch\.func needs PyTorch 2\.13"):
        attempt(Q)


@pytest.mark.parametrize("name", IN_GRAPH)
def test_derivatives_in_a_compiled_program(name):
    """Without a graph break they fail or give zeros without an error (pytorch#179652)."""
    derivative = IN_GRAPH[name]
    if torch.__version__ < "2.13" and name in ("grad", "jacrev", "vmap of grad"):
        expect_that_a_newer_torch_is_asked_for(compiled(derivative(score_of)))
        return
    if torch.__version__ >= "2.14" and name == "dual numbers":  # the level is not there while it is traced
        with pytest.raises(NotImplementedError, match="it has no forward-mode derivative"):
            compiled(derivative(score_of))(Q)
        return
    expected = derivative(lambda x: plain(x, *INPUTS[1:]))(Q)
    torch.testing.assert_close(compiled(derivative(score_of))(Q), expected)


def test_a_compiled_program_with_the_value_and_its_derivative():
    def both(x):
        return score_of(x), tangent_by_jvp(score_of)(x)

    torch.testing.assert_close(compiled(both)(Q), both(Q))


@pytest.mark.parametrize("derivative", [jvp, grad])
@pytest.mark.parametrize("function", [hinge_of, sum_of_logsumexp, top_scores], ids=["hinge", "logsumexp", "topk"])
def test_unsupported_derivatives_raise_in_a_compiled_program(function, derivative):
    if derivative is grad and torch.__version__ < "2.13":
        expect_that_a_newer_torch_is_asked_for(compiled(grad(function)))
        return
    if derivative is grad and function is not top_scores:
        torch.testing.assert_close(compiled(grad(function))(Q), grad(function)(Q))
        return
    attempt = compiled(tangent_by_jvp(function) if derivative is jvp else grad(function))
    with pytest.raises(NotImplementedError, match="derivative"):
        attempt(Q)


def test_derivatives_in_one_graph_raise_with_the_reason():
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"need a graph break\. Omit fullgraph=True"):
        compiled(tangent_by_jvp(score_of), fullgraph=True)(Q)


def test_gradients_of_compiled_top_scores_raise():
    """As in an eager call, indices may be used."""
    with pytest.raises(Exception, match="topk: its scores have no derivative"):
        compiled(top_scores)(leaves()[0]).backward()
    indices = compiled(lambda x: fused_dissim_topk(x, *INPUTS[1:], k=2).indices, fullgraph=True)(leaves()[0])
    assert torch.equal(indices, fused_dissim_topk(*INPUTS, k=2).indices)


@pytest.mark.parametrize("tangent", [tangent_by_jvp, tangent_by_dual_numbers])
def test_an_operator_called_in_forward_mode_raises(tangent):
    def scores(query):
        return torch.ops.dissim.score(query[None], INPUTS.reference[None], INPUTS.weight[None], None, "auto")

    with pytest.raises(NotImplementedError, match=r"torch\.ops\.dissim\.score: it has no forward-mode derivative"):
        tangent(scores)(Q)


def test_a_program_compiled_before_a_dual_level_says_to_compile_it_anew():
    program = torch.compile(score_of, backend="aot_eager")
    program(Q)
    with pytest.raises(NotImplementedError, match=r"compiled before the dual level .* torch\.compiler\.reset\(\)"):
        tangent_by_dual_numbers(program)(Q)


def test_a_dual_level_without_tangents_changes_nothing():
    def second(query):
        first = torch.autograd.grad(score_of(query), query, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), query)[0]

    expected = second(leaves()[0]), *ranks(*INPUTS)
    with forward_ad.dual_level():
        assert all(map(torch.equal, (second(leaves()[0]), *ranks(*INPUTS)), expected))


@pytest.mark.parametrize(
    "function",
    [fused_dissim_score, hinge_loss, logsumexp, lambda *x: fused_dissim_topk(*x, k=2), grad(fused, 2),
     grad(hinge_loss), lambda *x: jvp(fused, x, x)[1]],
    ids=["score", "hinge", "logsumexp", "topk", "grad", "grad hinge", "jvp"],
)  # fmt: skip
@pytest.mark.parametrize("argument", [0, 2])
def test_vmap_over_no_entries(function, argument):
    def shapes(entries):
        arguments = [x.expand(entries, *x.shape) if i == argument else x for i, x in enumerate(INPUTS)]
        found = vmap(function, tuple(0 if i == argument else None for i in range(4)))(*arguments)
        return [(x.shape[1:], x.dtype, len(x)) for x in (found if isinstance(found, tuple) else [found])]

    assert shapes(0) == [(*described, 0) for *described, _ in shapes(1)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_graph_is_recorded_without_grad_mode(mode):
    with mode():
        results = [function(*leaves()) for function in (fused_dissim_score, hinge_loss, logsumexp)]
        for result in (*results, top_scores(leaves()[0]), rank_scores(leaves()[0])):
            assert not result.requires_grad


def test_saved_tensors_are_freed_after_backward():
    loss = fused(*leaves())
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
