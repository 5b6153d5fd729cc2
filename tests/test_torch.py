"""A citizen of torch: opcheck, compile, export, meta, autocast, torch.func, and derivatives right or refused."""

import contextlib
import importlib.util
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd.functional import hessian as functional_hessian
from torch.autograd.functional import hvp, jacobian
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dissim_kernels import (
    fused_dissim_hinge_loss,
    fused_dissim_score,
    fused_dissim_topk,
    paired_dissim_score,
)
from dissim_kernels import testing as judge
from dissim_kernels.ops import hinge, operator, score, topk

BACKENDS = judge.runnable_backends()
backends = pytest.mark.parametrize("backend", BACKENDS)
INPUTS = judge.random_inputs((4, 5), (6, 5), dtype=torch.float64, seed=3)
SIDES = (torch.arange(4) % 2, torch.arange(6) % 2)
#: Plain torch for the same arguments, and ours, each to a number.
plain, fused = (lambda f: lambda *x: f(*x).square().sum() for _ in range(2))
plain, fused = plain(judge.plain_score), fused(fused_dissim_score)


def leaves():
    return [x.clone().requires_grad_() for x in INPUTS]


def hinge_loss(*arguments, **choices):
    return fused_dissim_hinge_loss(*arguments, *SIDES, **choices)


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_every_operator(dtype, backend):
    q, r, w, b = judge.random_inputs((2, 4, 5), (2, 6, 5), 3, dtype)
    gradient, ones = torch.randn(2, 3, 4, 6).to(dtype), torch.ones(4, dtype=torch.float32)
    active = torch.full((4, 1), 5, dtype=torch.uint8)
    one = (q[0], r[0], w[0])
    calls = [
        (score.score, (q, r, w, b, backend)),
        (score.score_backward, (gradient, q, r, w, backend, True, False, True)),
        (score.score_jvp, (q, r, w, q, r, w, b)),
        (topk.topk, (*one, b[:1], 2, True, None, *SIDES, backend)),
        (hinge.hinge, (*one, b[:1], *SIDES, None, 1.0, 2, backend)),
        (hinge.hinge_backward, (ones, ones, active, *one, *SIDES, [True, True, False, True], backend)),
    ]
    for called, arguments in calls:
        torch.library.opcheck(called.registered, arguments)
        if called in (score.score, score.score_backward, hinge.hinge):
            wanted = [x.clone().requires_grad_() if getattr(x, "dtype", None) == dtype else x for x in arguments]
            torch.library.opcheck(called.registered, wanted)


class Seen(TorchDispatchMode):
    """Keeps the names of what runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(str(operator))
        return operator(*args, **kwargs or {})


def names_in_fx(pre_dispatch):
    graph = make_fx(lambda *x: fused_dissim_score(*x), pre_dispatch=pre_dispatch)(*INPUTS[:3]).graph
    return [str(node.target) for node in graph.nodes]


def names_in_trace():
    graph = torch.jit.trace(fused_dissim_score, INPUTS[:3]).graph
    return [node.kind().replace("::", ".") + ".default" for node in graph.nodes()]


def names_in_mode():
    with Seen() as mode:
        fused_dissim_score(*INPUTS)
    return mode.names


class SeenFunctions(TorchFunctionMode):
    """Keeps the names of the functions that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **kwargs or {})


def names_in_function_mode():
    with SeenFunctions() as mode:
        fused_dissim_score(*INPUTS)
    return mode.names


class Named(torch.Tensor):
    """Keeps the names of what runs on it."""

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        cls.names.append(str(operator))
        return super().__torch_dispatch__(operator, types, args, kwargs or {})


def names_in_subclass():
    Named.names = []
    query, reference, weight, _ = INPUTS
    score.score(query[None].as_subclass(Named), reference[None], weight[None], None, "auto")
    return Named.names


@pytest.mark.parametrize(
    "names", [lambda: names_in_fx(False), lambda: names_in_fx(True), names_in_trace, names_in_mode,
              names_in_function_mode, names_in_subclass],
    ids=["make_fx", "make_fx before dispatch", "jit.trace", "mode", "function mode", "subclass"],
)  # fmt: skip
def test_who_watches_sees_the_operator(names):
    found = names()
    assert "dissim.score.default" in found and not any("dissim_native" in name for name in found)


def test_nobody_watches_a_plain_call(monkeypatch):
    monkeypatch.setattr(score.score, "registered", None)
    for arguments in (INPUTS, [torch.nn.Parameter(x, requires_grad=False) for x in INPUTS], leaves()):
        fused_dissim_score(*arguments)
    with torch.inference_mode():
        fused_dissim_score(*(x.clone() for x in INPUTS))


def test_a_tensor_that_stands_for_others_is_made_a_plain_one_first():
    negative = [torch._neg_view(x) for x in INPUTS]
    torch.testing.assert_close(fused_dissim_score(*negative), fused_dissim_score(*(-x for x in INPUTS)))


PRIVATE = ("_dispatch_keys", "_dispatch_tls_local_include_set", "_are_functorch_transforms_active")


@pytest.mark.parametrize("missing", [*PRIVATE, "DispatchKeySet", "_current_level"])
def test_a_torch_without_its_private_functions(missing, monkeypatch):
    """Then each call goes the longer way, by the registered operator or the Function."""
    spec = importlib.util.spec_from_file_location("without", operator.__file__)
    without = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        if missing != "_current_level":
            patch.delattr(torch._C, missing)
        spec.loader.exec_module(without)
    for name in ("_PLAIN", "_transforms_active"):
        monkeypatch.setattr(operator, name, getattr(without, name))
    if missing == "_current_level":
        monkeypatch.setattr(operator, "forward_ad", SimpleNamespace())
    assert operator._PLAIN is None or operator.transformed()
    torch.testing.assert_close(fused_dissim_score(*INPUTS), judge.plain_score(*INPUTS))
    assert fused_dissim_topk(*INPUTS, k=2).indices.shape == (4, 2)
    assert torch.autograd.gradcheck(fused_dissim_score, leaves(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(fused_dissim_score, leaves())
    assert torch.autograd.gradcheck(hinge_loss, leaves())
    torch.testing.assert_close(jacfwd(fused)(*INPUTS), jacfwd(plain)(*INPUTS))
    compiled = torch.compile(fused_dissim_score, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*INPUTS), judge.plain_score(*INPUTS))


class Everything(torch.nn.Module):
    """Score, paired score, hinge loss and mining in one graph."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = (torch.nn.Parameter(x.float().clone()) for x in INPUTS[2:])

    def forward(self, query, reference):
        head = self.weight, self.bias
        best = fused_dissim_topk(query, reference, *head, k=1, query_labels=SIDES[0], reference_labels=SIDES[1])
        hardest = paired_dissim_score(query, reference[best.indices[:, 0]], *head)
        loss = fused_dissim_hinge_loss(query, reference, *head, *SIDES, hard_negatives=2)
        return fused_dissim_score(query, reference, *head).relu().mean() + hardest.sum() + loss


def test_compiled_without_a_break_gives_the_same_loss_and_gradients():
    results = []
    for run in (lambda f: f, lambda f: torch.compile(f, fullgraph=True)):
        model, query, reference = Everything(), *(x.float().requires_grad_() for x in leaves()[:2])
        query, reference = query.detach().requires_grad_(), reference.detach().requires_grad_()
        loss = run(model)(query, reference)
        loss.backward()
        results.append([loss.detach(), query.grad, reference.grad, model.weight.grad, model.bias.grad])
    torch.testing.assert_close(*results)


def test_exported_program_gives_the_same_result():
    model, arguments = Everything(), tuple(x.float() for x in INPUTS[:2])
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(model, arguments)
    torch.testing.assert_close(program.module()(*arguments), model(*arguments))
    scores = Score(INPUTS)
    dynamic = torch.export.export(scores, arguments, dynamic_shapes=({0: rows}, None)).module()
    for count in (2, 17):
        query = torch.randn(count, 5)
        torch.testing.assert_close(dynamic(query, arguments[1]), scores(query, arguments[1]))


class HalfOfThem(torch.nn.Module):
    """k and the number of hard negatives follow from the number of references."""

    def forward(self, query, reference, weight, query_labels, reference_labels):
        half = reference.shape[0] // 2
        found = fused_dissim_topk(query, reference, weight, k=half)
        sides = query_labels, reference_labels
        return *found, fused_dissim_hinge_loss(query, reference, weight, None, *sides, hard_negatives=half // 2)


@pytest.mark.parametrize("strict", [True, False])
def test_exported_counts_follow_a_dynamic_size(strict):
    def arguments(rows):
        return torch.randn(4, 5), torch.randn(rows, 5), torch.randn(5), SIDES[0], torch.arange(rows) % 3

    sizes = {0: torch.export.Dim("rows", min=16, max=1000)}
    program = torch.export.export(
        HalfOfThem(), arguments(20), dynamic_shapes=(None, sizes, None, None, sizes), strict=strict
    )
    given = arguments(36)
    torch.testing.assert_close(program.module()(*given), HalfOfThem()(*given))


class Score(torch.nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.weight = torch.nn.Parameter(inputs.weight.float().clone())

    def forward(self, query, reference):
        return fused_dissim_score(query, reference, self.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shapes_and_dtypes_without_data(dtype):
    """Under FakeTensor and on the meta device every operator gives the shape and dtype of the real call."""
    real = judge.random_inputs((4, 5), (6, 5), dtype=dtype)

    def calls(inputs, sides):
        found = fused_dissim_topk(*inputs, k=2)
        rows = fused_dissim_hinge_loss(*inputs, *sides, reduction="none")
        scores = fused_dissim_score(*inputs)
        scores.sum().backward()
        return [scores, *found, rows, inputs.query.grad, inputs.weight.grad]

    def described(tensors):
        return [(x.shape, x.dtype) for x in tensors]

    meta = judge.Inputs(*(x.to("meta").requires_grad_() for x in real))
    expected = described(calls(judge.Inputs(*(x.clone().requires_grad_() for x in real)), SIDES))
    assert described(calls(meta, [x.to("meta") for x in SIDES])) == expected
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = judge.Inputs(*(mode.from_tensor(x).requires_grad_() for x in real))
        assert described(calls(fake, [mode.from_tensor(x) for x in SIDES])) == expected


@pytest.mark.parametrize("cast_to", [torch.bfloat16, torch.float16])
def test_autocast_runs_in_float32_as_cdist_does(cast_to):
    q, r, w, b = (x.float() for x in INPUTS)
    with torch.autocast("cpu", cast_to):
        for query, reference in ((q, r), (q.to(cast_to), r), (q, r.bfloat16()), (q.half(), r.half())):
            scores = fused_dissim_score(query, reference, w.requires_grad_(), b)
            assert scores.dtype == torch.float32
            torch.testing.assert_close(scores, fused_dissim_score(query.float(), reference.float(), w, b))
            assert paired_dissim_score(query, reference[:4], w).dtype == torch.float32
            assert fused_dissim_topk(query, reference, w, k=2).scores.dtype == torch.float32
            assert fused_dissim_hinge_loss(query, reference, w, b, *SIDES).dtype == torch.float32
        assert fused_dissim_score(*INPUTS).dtype == torch.float64
        embeddings = q.to(cast_to).requires_grad_()
        loss = fused_dissim_score(embeddings, r, w, b).sum()
    loss.backward()
    assert embeddings.grad.dtype == cast_to and w.grad.dtype == torch.float32


@pytest.mark.parametrize("setting", [lambda: torch.device("meta"), lambda: default_dtype(torch.bfloat16)],
                         ids=["device", "dtype"])  # fmt: skip
@backends
def test_defaults_of_torch_change_nothing(backend, setting):
    def everything():
        q, r, w, b = leaves()
        choices = {"backend": backend}
        scores = fused_dissim_score(q, r, w, b, **choices)
        losses = [hinge_loss(q, r, w, b, **choices, exclude=SIDES[0], hard_negatives=n) for n in (None, 2)]
        pairs = paired_dissim_score(q, r[:4], w, 0.5, **choices)
        first = torch.autograd.grad(sum(x.square().sum() for x in (scores, pairs, *losses)), (q, r, w, b))
        scores = fused_dissim_score(q, r, w, b, **choices).square().sum()
        second = torch.autograd.grad(scores, (q, r, w, b), create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in second), (q, r, w, b))
        arguments = {"k": 2, "exclude": SIDES[0], **choices}
        found = fused_dissim_topk(q.detach(), r.detach(), w.detach(), **arguments)
        tangent = jvp(fused_dissim_score, INPUTS, INPUTS)[1]
        return [scores, *losses, pairs, *first, *second, *found, tangent]

    expected = everything()
    with setting():
        found = everything()
    assert all(map(torch.equal, found, expected))


@contextlib.contextmanager
def default_dtype(dtype):
    was = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(was)


@backends
def test_first_and_second_derivatives_by_differences(backend):
    """Batched ones too, as is_grads_batched and vectorize=True ask for them."""
    heads = judge.random_inputs((2, 3, 4), (2, 2, 4), 2, torch.float64, seed=1)
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

    torch.testing.assert_close(second(fused_dissim_score), second(judge.plain_score))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_tangent_has_the_dtype_of_the_score(dtype):
    q, r, w, _ = judge.tie_grid(4, 6, 5, dtype)  # exact, so that the tangent is rounded once
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
@pytest.mark.parametrize("twice", [jacrev, jacfwd])
def test_second_derivatives_of_torch_func(twice, first, argument):
    """Reverse over reverse and forward over forward, without a silent zero; the mixtures are refused below."""
    ours, theirs = (twice(twice(f, first), argument)(*INPUTS) for f in (fused, plain))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mapped", [(0, None, None, None), (None, 0, None, None), (None, None, 0, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize(
    "function",
    [fused_dissim_score, hinge_loss, lambda *x: fused_dissim_topk(*x, k=2), grad(fused), grad(fused, 2),
     grad(hinge_loss), lambda *x: jvp(fused, x, x)[1]],
    ids=["score", "hinge", "topk", "grad query", "grad weight", "grad hinge", "jvp"],
)  # fmt: skip
def test_vmap_is_a_loop(function, mapped):
    stacked = [x if dim is None else torch.stack((x, x * 2, x + 1)) for x, dim in zip(INPUTS, mapped, strict=True)]
    ours = vmap(function, mapped)(*stacked)
    for i in range(3):
        alone = function(*(x if dim is None else x[i] for x, dim in zip(stacked, mapped, strict=True)))
        torch.testing.assert_close([x[i] for x in ours] if isinstance(ours, tuple) else ours[i],
                                   list(alone) if isinstance(alone, tuple) else alone)  # fmt: skip


def test_per_sample_gradients_of_a_module():
    """The usual recipe: vmap over grad of a functional call."""
    model, (query, reference) = Score(INPUTS), (x.float() for x in INPUTS[:2])

    def loss(parameters, row):
        return functional_call(model, parameters, (row[None], reference)).square().sum()

    rows = vmap(grad(loss), (None, 0))(dict(model.named_parameters()), query)["weight"]
    torch.testing.assert_close(rows.sum(0), grad(fused, 2)(query, reference, model.weight.detach()))


def differentiate_thrice():
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


def hinge_twice():
    query = leaves()[0]
    first = torch.autograd.grad(hinge_of(query), query, create_graph=True)[0]
    torch.autograd.grad(first.sum(), query)


def hinge_rows(query):
    return hinge_loss(query, *INPUTS[1:], reduction="none")


def forward_jacobian(function):
    return jacobian(function, Q, vectorize=True, strategy="forward-mode")


Q = INPUTS.query
REFUSED = {
    "third derivative": (differentiate_thrice, "a third derivative is not available"),
    "hessian": (lambda: hessian(score_of)(Q), "forward-mode over reverse-mode is not available"),
    "jvp of grad": (lambda: jvp(grad(score_of), (Q,), (Q,)), "forward-mode over reverse-mode is not available"),
    "grad of jvp": (lambda: grad(lambda x: jvp(score_of, (x,), (x,))[1])(Q), "nor reverse-mode over forward-mode"),
    "jvp of hinge": (lambda: jvp(hinge_of, (Q,), (Q,)), "hinge_loss: a forward-mode derivative is not"),
    "jacfwd of hinge": (lambda: jacfwd(hinge_of)(Q), "hinge_loss: a forward-mode derivative is not"),
    "double backward of hinge": (hinge_twice, "hinge_loss: a second derivative is not"),
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
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_derivative_that_cannot_be_given_is_refused(name):
    attempt, message = REFUSED[name]
    with pytest.raises((NotImplementedError, RuntimeError), match=message):
        attempt()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_graph_where_none_is_wanted(mode):
    with mode():
        for result in (fused_dissim_score(*leaves()), hinge_loss(*leaves()), top_scores(leaves()[0])):
            assert not result.requires_grad


def test_saved_tensors_are_freed_after_backward():
    loss = fused(*leaves())
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
