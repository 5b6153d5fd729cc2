"""Integration with torch: opcheck, tracers and modes, compile, export, meta, autocast, defaults."""

import contextlib
import importlib.util
from types import SimpleNamespace

import pytest
import torch
from small_inputs import INPUTS, SIDES, fused, hinge_loss, leaves, logsumexp, plain, ranks
from torch.func import jacfwd, jvp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dissim_kernels import (
    fused_dissim_hinge_loss,
    fused_dissim_logsumexp,
    fused_dissim_score,
    fused_dissim_topk,
    paired_dissim_score,
    testing,
)
from dissim_kernels.ops import hinge_operators, logsumexp_operators, operator, rank, score_operators, topk

BACKENDS = testing.runnable_backends()
backends = pytest.mark.parametrize("backend", BACKENDS)


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_every_operator(dtype, backend):
    q, r, w, b = testing.random_inputs((2, 4, 5), (2, 6, 5), 3, dtype)
    gradient, ones = torch.randn(2, 3, 4, 6).to(dtype), torch.ones(4, dtype=torch.float32)
    active = torch.full((4, 1), 5, dtype=torch.uint8)
    one = (q[0], r[0], w[0])
    calls = [
        (score_operators.score, (q, r, w, b, backend)),
        (score_operators.score_backward, (gradient, q, r, w, backend, True, False, True)),
        (score_operators.score_jvp, (q, r, w, q, r, w, b)),
        (topk.topk, (*one, b[:1], 2, True, None, *SIDES, "same", backend)),
        (hinge_operators.hinge, (*one, b[:1], *SIDES, None, 1.0, 2, backend)),
        (hinge_operators.hinge_backward, (ones, ones, active, *one, *SIDES, [True, True, False, True], backend)),
        (logsumexp_operators.logsumexp, (*one, b[:1], ones[:1], *SIDES, None, "same", backend)),
        (logsumexp_operators.logsumexp_backward,
         (ones, 9 * ones, active, *one, b[:1], ones[:1], [True, False, True], backend)),
        (rank.listed_scores, (*one, b[:1], torch.tensor([0, 1, 1, 3, 3]), torch.tensor([5, 0, 2]), backend)),
        (rank.rank, (*one, b[:1], torch.tensor([0, 1, 1, 3, 3]), torch.tensor([5, 0, 2]), ones[:3], backend)),
    ]  # fmt: skip
    for called, arguments in calls:
        torch.library.opcheck(called.registered, arguments)
        if called in (score_operators.score, score_operators.score_backward, hinge_operators.hinge,
                      logsumexp_operators.logsumexp):  # fmt: skip
            wanted = [x.clone().requires_grad_() if getattr(x, "dtype", None) == dtype else x for x in arguments]
            torch.library.opcheck(called.registered, wanted)


class RecordOperators(TorchDispatchMode):
    """Records the names of the operators that run."""

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
    with RecordOperators() as mode:
        fused_dissim_score(*INPUTS)
    return mode.names


class RecordFunctions(TorchFunctionMode):
    """Records the names of the functions that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **kwargs or {})


def names_in_function_mode():
    with RecordFunctions() as mode:
        fused_dissim_score(*INPUTS)
    return mode.names


class RecordingTensor(torch.Tensor):
    """Records the names of the operators that run on it."""

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        cls.names.append(str(operator))
        return super().__torch_dispatch__(operator, types, args, kwargs or {})


def names_in_subclass():
    RecordingTensor.names = []
    query, reference, weight, _ = INPUTS
    score_operators.score(query[None].as_subclass(RecordingTensor), reference[None], weight[None], None, "auto")
    return RecordingTensor.names


@pytest.mark.parametrize(
    "names", [lambda: names_in_fx(False), lambda: names_in_fx(True), names_in_trace, names_in_mode,
              names_in_function_mode, names_in_subclass],
    ids=["make_fx", "make_fx before dispatch", "jit.trace", "mode", "function mode", "subclass"],
)  # fmt: skip
def test_tracers_and_modes_see_the_operator(names):
    found = names()
    assert "dissim.score.default" in found and not any("dissim_native" in name for name in found)


def test_plain_call_skips_the_registered_operator(monkeypatch):
    monkeypatch.setattr(score_operators.score, "registered", None)
    for arguments in (INPUTS, [torch.nn.Parameter(x, requires_grad=False) for x in INPUTS], leaves()):
        fused_dissim_score(*arguments)
    with torch.inference_mode():
        fused_dissim_score(*(x.clone() for x in INPUTS))


def test_negative_views_are_materialized():
    negative = [torch._neg_view(x) for x in INPUTS]
    torch.testing.assert_close(fused_dissim_score(*negative), fused_dissim_score(*(-x for x in INPUTS)))


PRIVATE = ("_dispatch_keys", "_dispatch_tls_local_include_set", "_are_functorch_transforms_active")


@pytest.mark.parametrize("missing", [*PRIVATE, "DispatchKeySet", "_current_level"])
def test_torch_without_private_functions(missing, monkeypatch):
    """Each call then takes the slower path through the registered operator or the autograd Function."""
    spec = importlib.util.spec_from_file_location("dissim_kernels.ops.without", operator.__file__)
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
    torch.testing.assert_close(fused_dissim_score(*INPUTS), testing.plain_score(*INPUTS))
    assert fused_dissim_topk(*INPUTS, k=2).indices.shape == (4, 2)
    assert torch.autograd.gradcheck(fused_dissim_score, leaves(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(fused_dissim_score, leaves())
    assert torch.autograd.gradcheck(hinge_loss, leaves())
    assert torch.autograd.gradcheck(logsumexp, leaves())
    assert ranks(*INPUTS).ranks.shape == (12,)
    torch.testing.assert_close(jacfwd(fused)(*INPUTS), jacfwd(plain)(*INPUTS))
    compiled = torch.compile(fused_dissim_score, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*INPUTS), testing.plain_score(*INPUTS))


class Everything(torch.nn.Module):
    """Score, paired score, hinge loss, log-sum-exp and mining in one graph."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = (torch.nn.Parameter(x.float().clone()) for x in INPUTS[2:])

    def forward(self, query, reference):
        head = self.weight, self.bias
        best = fused_dissim_topk(query, reference, *head, k=1, query_labels=SIDES[0], reference_labels=SIDES[1])
        hardest = paired_dissim_score(query, reference[best.indices[:, 0]], *head)
        loss = fused_dissim_hinge_loss(query, reference, *head, *SIDES, num_hard_negatives=2)
        same = {"query_labels": SIDES[0], "reference_labels": SIDES[1], "among": "same"}
        softest = fused_dissim_logsumexp(query, reference, *head, scale=-self.bias.exp(), **same)
        return fused_dissim_score(query, reference, *head).relu().mean() + hardest.sum() + loss + softest.sum()


def test_full_graph_compile_gives_the_same_loss_and_gradients():
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


class DynamicCounts(torch.nn.Module):
    """k and the number of hard negatives follow from the number of references."""

    def forward(self, query, reference, weight, query_labels, reference_labels):
        half = reference.shape[0] // 2
        found = fused_dissim_topk(query, reference, weight, k=half)
        sides = query_labels, reference_labels
        return *found, fused_dissim_hinge_loss(query, reference, weight, None, *sides, num_hard_negatives=half // 2)


@pytest.mark.parametrize("strict", [True, False])
def test_exported_counts_follow_a_dynamic_size(strict):
    def arguments(rows):
        return torch.randn(4, 5), torch.randn(rows, 5), torch.randn(5), SIDES[0], torch.arange(rows) % 3

    sizes = {0: torch.export.Dim("rows", min=16, max=1000)}
    program = torch.export.export(
        DynamicCounts(), arguments(20), dynamic_shapes=(None, sizes, None, None, sizes), strict=strict
    )
    given = arguments(36)
    torch.testing.assert_close(program.module()(*given), DynamicCounts()(*given))


class Score(torch.nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.weight = torch.nn.Parameter(inputs.weight.float().clone())

    def forward(self, query, reference):
        return fused_dissim_score(query, reference, self.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shapes_and_dtypes_on_fake_and_meta_tensors(dtype):
    """With fake and meta tensors every operator returns the shape and dtype of the real call."""
    real = testing.random_inputs((4, 5), (6, 5), dtype=dtype)

    def calls(inputs, sides):
        found = fused_dissim_topk(*inputs, k=2)
        rows = fused_dissim_hinge_loss(*inputs, *sides, reduction="none")
        scores = fused_dissim_score(*inputs)
        sums = fused_dissim_logsumexp(*inputs, scale=2.0, among="all")
        (scores.sum() + sums.sum()).backward()
        return [scores, *found, rows, sums, inputs.query.grad, inputs.weight.grad]

    def described(tensors):
        return [(x.shape, x.dtype) for x in tensors]

    meta = testing.Inputs(*(x.to("meta").requires_grad_() for x in real))
    expected = described(calls(testing.Inputs(*(x.clone().requires_grad_() for x in real)), SIDES))
    assert described(calls(meta, [x.to("meta") for x in SIDES])) == expected
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = testing.Inputs(*(mode.from_tensor(x).requires_grad_() for x in real))
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
            scale = torch.ones((), dtype=cast_to)
            assert fused_dissim_logsumexp(query, reference, w, b, scale=scale, among="all").dtype == torch.float32
            assert ranks(query, reference, w, b).scores.dtype == torch.float32
        assert fused_dissim_score(*INPUTS).dtype == torch.float64
        embeddings = q.to(cast_to).requires_grad_()
        loss = fused_dissim_score(embeddings, r, w, b).sum()
    loss.backward()
    assert embeddings.grad.dtype == cast_to and w.grad.dtype == torch.float32


@pytest.mark.parametrize("setting", [lambda: torch.device("meta"), lambda: default_dtype(torch.bfloat16)],
                         ids=["device", "dtype"])  # fmt: skip
@backends
def test_default_device_and_dtype_change_nothing(backend, setting):
    def everything():
        q, r, w, b = leaves()
        choices = {"backend": backend}
        scores = fused_dissim_score(q, r, w, b, **choices)
        losses = [hinge_loss(q, r, w, b, **choices, exclude_index=SIDES[0], num_hard_negatives=n) for n in (None, 2)]
        losses.append(logsumexp(q, r, w, b, **choices))
        pairs = paired_dissim_score(q, r[:4], w, 0.5, **choices)
        first = torch.autograd.grad(sum(x.square().sum() for x in (scores, pairs, *losses)), (q, r, w, b))
        scores = fused_dissim_score(q, r, w, b, **choices).square().sum()
        second = torch.autograd.grad(scores, (q, r, w, b), create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in second), (q, r, w, b))
        arguments = {"k": 2, "exclude_index": SIDES[0], **choices}
        found = fused_dissim_topk(q.detach(), r.detach(), w.detach(), **arguments)
        tangent = jvp(fused_dissim_score, INPUTS, INPUTS)[1]
        return [scores, *losses, pairs, *first, *second, *found, *ranks(q, r, w, b, **choices), tangent]

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
