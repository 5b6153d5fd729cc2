"""Tests that need a GPU. `make gpu` runs them and, on the GPU, the tests of every backend (on_device.py).

Expected values are the definitions in float64 on the CPU. Without a GPU these tests are skipped.
"""

import re
import subprocess
import sys

import pytest
import torch
from on_device import move

from bench.gpu import capture
from bench.gpu_tests import PARTS
from bench.processes import ROOT
from dissim_kernels import (
    dispatch,
    fused_dissim_hinge_loss,
    fused_dissim_logsumexp,
    fused_dissim_rank,
    fused_dissim_score,
    fused_dissim_topk,
    last_backend,
    paired_dissim_score,
    quantize_references,
    testing,
    unavailable_backends,
)
from dissim_kernels.contract import ACCUMULATE

pytestmark = pytest.mark.gpu
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU that it can use")
dtypes = pytest.mark.parametrize("dtype", ACCUMULATE, ids=str)


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU that it can use")
    if reason := unavailable_backends().get(request.param):
        pytest.fail(f"backend {request.param!r} cannot run: {reason}")
    yield request.param
    torch.cuda.synchronize()  # so that a late failure is attributed to this test


def on_device(inputs):
    return move(inputs, "cuda")


def leaves(inputs):
    return [x.detach().clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in inputs]


def labels(rows, columns, classes=7):
    return torch.arange(rows, device="cuda") % classes, torch.arange(columns, device="cuda") * 3 % classes


def calls(inputs, backend):
    """Every operation, forward and backward, for inputs on the device: name -> a function without arguments."""
    sides = labels(len(inputs.query), len(inputs.reference))
    trained = [x.detach().requires_grad_() for x in inputs]  # share the memory of the inputs
    upstream = torch.sin(torch.arange(len(inputs.query) * len(inputs.reference), device="cuda").float())
    upstream = upstream.to(inputs.query.dtype).view(len(inputs.query), -1)

    def score_step():
        scores = fused_dissim_score(*trained, backend=backend)
        return scores.detach(), *torch.autograd.grad(scores, trained, upstream)

    def hinge_step():
        loss = fused_dissim_hinge_loss(*trained, *sides, num_hard_negatives=3, backend=backend)
        return loss.detach(), *torch.autograd.grad(loss, trained)

    def logsumexp_step():
        sums = fused_dissim_logsumexp(*trained, scale=0.1, among="all", backend=backend)
        return sums.detach(), *torch.autograd.grad(sums.sum(), trained)

    found = {
        "score": lambda: (fused_dissim_score(*inputs, backend=backend),),
        "score step": score_step,
        "topk": lambda: fused_dissim_topk(*inputs, k=5, backend=backend),
        "hinge step": hinge_step,
        "log-sum-exp step": logsumexp_step,
    }
    if backend == "cuda":
        codes = quantize_references(inputs.reference, inputs.weight)
        found["quantized_topk"] = lambda: fused_dissim_topk(
            *inputs, k=5, quantized=codes, return_stats=True, backend=backend
        )
    return found


def bit_identical(a, b):
    """Whether tensors are equal in every bit, except for the bits of NaN."""
    return all(torch.equal(x.nan_to_num(12345), y.nan_to_num(12345)) for x, y in zip(a, b, strict=True))


# --- tensors on the device, through the public functions ------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("part", [f"part{n}" for n in range(PARTS)])
def test_scores_and_gradients_of_every_edge_case_input(part, dtype, backend):
    """In parts, because Triton compiles kernels for each kind of size."""
    for name, inputs in list(testing.edge_case_inputs(dtype).items())[int(part[-1]) :: PARTS]:
        exact, found = leaves(inputs.double()), leaves(on_device(inputs))
        expected = testing.plain_score(*exact)
        upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        with testing.poisoned_memory():
            scores = fused_dissim_score(*found, backend=backend)
            scores.backward(upstream.cuda())
        expected.backward(upstream.double())
        testing.assert_within(scores.detach().cpu(), expected.detach(), testing.score_bound(*inputs), name)
        for got, leaf, bound in zip(found, exact, testing.gradient_bounds(upstream, *inputs), strict=True):
            if isinstance(got, torch.Tensor):
                testing.assert_within(got.grad.cpu(), leaf.grad, bound, f"gradient, {name}")


@dtypes
def test_paired_scores(dtype, backend):
    inputs = testing.random_inputs((200, 33), (200, 33), 2, dtype)
    pairs = inputs._replace(query=inputs.query.unsqueeze(-2), reference=inputs.reference.unsqueeze(-2))
    exact, bound = (x.flatten(1) for x in (testing.plain_score(*pairs.double()), testing.score_bound(*pairs)))
    testing.assert_within(paired_dissim_score(*on_device(inputs), backend=backend).cpu(), exact, bound)


@dtypes
def test_the_best_references_of_every_edge_case_input(dtype, backend):
    for inputs in testing.edge_case_inputs(dtype).values():
        if inputs.query.dim() == inputs.reference.dim() == 2 and inputs.weight.dim() == 1 and len(inputs.reference):
            found = fused_dissim_topk(*on_device(inputs), k=len(inputs.reference) // 2 + 1, backend=backend)
            scores = testing.plain_score(*inputs.double())
            testing.assert_topk_equal(*move(tuple(found), "cpu"), scores, testing.score_bound(*inputs))


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [1000, 1003])
def test_large_k_with_tied_references(k, largest, backend):
    """Exact arithmetic, so that every index must be the one of a stable sort."""
    inputs = testing.tied_inputs(70, 9000, 5)
    expected, none = testing.plain_score(*inputs.double()), torch.zeros(70, 9000)
    found = fused_dissim_topk(*on_device(inputs), k=k, largest=largest, backend=backend)
    testing.assert_topk_equal(*move(tuple(found), "cpu"), expected, none, largest=largest)
    if backend == "cuda":
        query, reference, weight, bias = on_device(inputs)
        quantized = quantize_references(reference, weight)
        options = {"k": k, "largest": largest, "backend": backend}
        assert bit_identical(fused_dissim_topk(query, reference, weight, bias, quantized=quantized, **options), found)


@on_gpu
@pytest.mark.parametrize("k", [10, 1000])
@pytest.mark.parametrize("largest", [True, False])
def test_quantized_search_equals_plain_search(largest, k):
    """More queries than one pass takes, and more references than a candidate list holds."""
    inputs = on_device(testing.random_inputs((700, 64), (200_000, 64)))
    codes = quantize_references(inputs.reference, inputs.weight)
    with testing.poisoned_memory():
        found = fused_dissim_topk(*inputs, k=k, quantized=codes, largest=largest, return_stats=True, backend="cuda")
    expected = fused_dissim_topk(*inputs, k=k, largest=largest, backend="cuda")
    assert bit_identical(found[:2], expected)
    assert (found.rescored >= k).all() and found.rescored.double().mean() < 0.01 * 200_000 + 5 * k


@dtypes
def test_loss_and_gradients_of_a_training_step(dtype, backend):
    inputs = testing.random_inputs((130, 16), (300, 16), dtype=dtype)
    exact, found, sides = leaves(inputs.double()), leaves(on_device(inputs)), labels(130, 300)
    scores, slope = testing.plain_score(*exact), torch.zeros(130, 300, dtype=torch.float64)
    scores.register_hook(slope.copy_)
    testing.plain_hinge_loss(scores, *move(sides, "cpu")).backward()
    bound = testing.score_bound(*(x.to(ACCUMULATE[dtype]) for x in inputs))
    assert ((scores.abs() - 1).abs() > bound).all(), (
        "choose inputs whose pairs are on the same side of the margin after rounding"
    )
    with testing.poisoned_memory():
        fused_dissim_hinge_loss(*found, *sides, backend=backend).backward()
    for got, leaf, bound in zip(found, exact, testing.gradient_bounds(slope, *inputs, extra=16), strict=True):
        testing.assert_within(got.grad.cpu(), leaf.grad, bound)


@dtypes
def test_log_sum_exp_and_its_gradients(dtype, backend):
    inputs = testing.random_inputs((130, 16), (300, 16), dtype=dtype)
    bias = torch.tensor(0.5, dtype=ACCUMULATE[dtype])
    exact, found = leaves((*inputs[:3], bias)), leaves(on_device((*inputs[:3], bias)))
    exact = [x.detach().double().requires_grad_() for x in exact]
    sides, options = labels(130, 300), {"among": "same", "scale": -0.5, "backend": backend}
    kept = testing.plain_candidates(130, 300, None, *move(sides, "cpu"), "same")
    bounds = testing.logsumexp_bounds(torch.ones(130), kept, -0.5, *inputs[:3], bias)
    expected = testing.plain_logsumexp(testing.plain_score(*exact), kept, -0.5)
    expected.sum().backward()
    with testing.poisoned_memory():
        value = fused_dissim_logsumexp(*found, query_labels=sides[0], reference_labels=sides[1], **options)
        value.sum().backward()
    testing.assert_within(value.detach().cpu(), expected.detach(), bounds.value)
    for got, leaf, bound in zip(found, exact, bounds[1:5], strict=True):
        testing.assert_within(got.grad.cpu(), leaf.grad, bound)


def test_ranks_of_tied_references(backend):
    """Exact arithmetic: every reference is a match, in short lists and in long ones."""
    inputs, sides = testing.tied_inputs(70, 3000, 5), labels(70, 3000)
    scores = testing.plain_score(*inputs.double())
    place = scores.neg().sort(dim=1, stable=True).indices.argsort(1)
    for query_labels, reference_labels in (sides, [x * 0 for x in sides]):
        found = fused_dissim_rank(*on_device(inputs), query_labels=query_labels, reference_labels=reference_labels,
                                  backend=backend)  # fmt: skip
        same = (query_labels[:, None] == reference_labels).cpu()
        assert torch.equal(found.ranks.cpu(), place[same]) and torch.equal(found.indices.cpu(), same.nonzero()[:, 1])


# --- repeated runs, graphs, streams ---------------------------------------------------------------------------------

SHAPES = [((300, 64), (700, 64)), ((3, 99), (5000, 99)), ((1, 128), (70_000, 128))]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@dtypes
@shapes
def test_every_run_is_bit_identical(shape, dtype, backend):
    inputs = on_device(testing.random_inputs(*shape, dtype=dtype))
    for name, call in calls(inputs, backend).items():
        first = [x.clone() for x in call()]
        assert all(bit_identical(call(), first) for _ in range(5)), name


@shapes
def test_captured_graph_reads_its_inputs_at_replay(shape, backend):
    """A replay with other values in the same memory gives the result of a call. No operation may synchronize."""
    first, second = (on_device(testing.random_inputs(*shape, seed=seed)) for seed in (0, 1))
    inputs = testing.Inputs(*(x.clone() for x in first))
    expected = {name: [x.clone() for x in call()] for name, call in calls(second, backend).items()}
    for name, call in calls(inputs, backend).items():
        graph, captured = capture(call)
        with torch.no_grad():
            for to, values in zip(inputs, first if name == "quantized_topk" else second, strict=True):
                to.copy_(values)  # codes are those of the first references
        graph.replay()
        torch.cuda.synchronize()
        assert bit_identical(captured, call() if name == "quantized_topk" else expected[name]), name
        with torch.no_grad():
            for to, values in zip(inputs, first, strict=True):
                to.copy_(values)


def test_kernels_run_on_the_current_stream(backend):
    """The inputs are written on that stream after a wait. A kernel on another stream would read the old values."""
    given = on_device(testing.random_inputs((300, 64), (700, 64)))
    expected = {name: [x.clone() for x in call()] for name, call in calls(given, backend).items()}
    inputs = testing.Inputs(*(x.clone() for x in given))
    for name, call in calls(inputs, backend).items():
        with torch.no_grad():
            for x in inputs[: 1 if name == "quantized_topk" else 4]:  # codes are those of the references
                x.zero_()
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream), torch.no_grad():
            torch.cuda._sleep(100_000_000)  # clocks: some 50 ms
            for to, values in zip(inputs, given, strict=True):
                to.copy_(values)
            with torch.enable_grad():
                found = call()
        stream.synchronize()
        assert bit_identical(found, expected[name]), name


def test_a_device_that_is_not_the_current_one(backend):
    """The last device, which is the current one if there is only one."""
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    inputs = testing.random_inputs((40, 20), (70, 20))
    found = fused_dissim_score(*move(inputs, last), backend=backend)
    assert found.device == last and torch.cuda.current_device() == 0
    testing.assert_within(found.cpu(), testing.plain_score(*inputs.double()), testing.score_bound(*inputs))


def test_a_compiled_module_calls_the_operator(backend):
    inputs = on_device(testing.random_inputs((40, 20), (70, 20)))
    call = torch.compile(lambda *x: fused_dissim_score(*x, backend=backend) * 2, backend="aot_eager", fullgraph=True)
    assert torch.equal(call(*inputs), fused_dissim_score(*inputs, backend=backend) * 2)


# --- sizes beyond 32 bits and beyond a grid's limits ----------------------------------------------------------------


def test_more_scores_than_2_to_the_31(backend):
    inputs = on_device(testing.tied_inputs(40_000, 60_000, 3, torch.float16))
    scores = fused_dissim_score(*inputs, backend=backend)
    rows = torch.tensor([0, 1, 17_895, 35_791, 35_792, 39_999], device="cuda")  # 2**31 / 60,000 = 35,791.4
    assert torch.equal(scores[rows], testing.plain_score(inputs.query[rows], *inputs[1:]))


def test_more_reference_elements_than_2_to_the_31(backend):
    reference = torch.zeros(4_300_000, 512, dtype=torch.float16, device="cuda")  # 2.2e9 numbers
    reference[-1], reference[4_194_305] = 1, 2
    query, weight = torch.zeros(9, 512, dtype=torch.float16, device="cuda"), torch.ones(512, device="cuda")
    found = fused_dissim_topk(query, reference, weight, k=3, backend=backend)
    assert (found.indices == torch.tensor([4_194_305, 4_299_999, 0], device="cuda")).all()
    assert (found.scores == torch.tensor([1024.0, 512.0, 0.0], device="cuda")).all()


@pytest.mark.parametrize(
    "shape", [((70_000, 2, 5), (70_000, 3, 5)), ((3, 5), (9_000_000, 5)), ((9_000_000, 5), (3, 5))], ids=str
)
def test_more_blocks_than_a_grid_has_in_y_or_z(shape, backend):
    """More than 65,535. Arithmetic is exact, so that sums in any order are equal."""
    rng = torch.Generator().manual_seed(0)
    query, reference = (torch.randint(-2, 3, size, generator=rng).float().cuda() for size in shape)
    weight = torch.tensor([0.25, -0.5, 0.0, 1.0, -0.75], device="cuda")
    sides = [x.requires_grad_() for x in (query, reference)]
    scores = fused_dissim_score(*sides, weight, backend=backend)
    found = torch.autograd.grad(scores, sides, torch.ones_like(scores))
    differences = query.detach().unsqueeze(-2) - reference.detach().unsqueeze(-3)
    assert torch.equal(scores.detach(), differences.abs() @ weight)
    signs = differences.sign_().mul_(weight)
    assert torch.equal(found[0], signs.sum(-2)) and torch.equal(found[1], -signs.sum(-3))


# --- devices without a compiled image -------------------------------------------------------------------------------


OLD_DEVICE = """
import torch, dissim_kernels
torch.cuda.get_device_capability = lambda *device, **named: (7, 5)
x = torch.randn(4, 5, device="cuda")
try:
    dissim_kernels.fused_dissim_score(x, x, x[0])
except RuntimeError as error:
    print(error)
"""


@on_gpu
def test_device_older_than_every_image_raises_with_reasons():
    """In a new process, because the capability of a device is cached."""
    done = subprocess.run([sys.executable, "-c", OLD_DEVICE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("cuda", "triton"):
        assert re.search(f"backend '{name}' cannot run this call: .*8.0 or more", done.stdout), done.stdout


@on_gpu
def test_auto_selects_triton_for_a_device_without_cuda_image(monkeypatch):
    """As for a build for one GPU that runs on another one."""
    reason = "it has no image for this device, in this test"
    monkeypatch.setattr(dispatch.BACKENDS["cuda"], "unsupported_reason", lambda problem: reason)
    inputs = testing.random_inputs((4, 5), (6, 5))
    found = fused_dissim_score(*on_device(inputs))
    assert last_backend() == "triton"
    testing.assert_within(found.cpu(), testing.plain_score(*inputs.double()), testing.score_bound(*inputs))
    with pytest.raises(RuntimeError, match=reason):
        fused_dissim_score(*on_device(inputs), backend="cuda")
