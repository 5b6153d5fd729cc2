"""What only a GPU can show: `make gpu` runs what is marked gpu, and the tests of every backend (on_device.py).

Expected values are the definitions, on the CPU in float64. Without a device these tests are skipped and say so.
"""

import re
import subprocess
import sys

import pytest
import torch
from on_device import move

from bench.gpu_tests import PARTS
from bench.processes import ROOT
from dissim_kernels import (
    dispatch,
    fused_dissim_hinge_loss,
    fused_dissim_score,
    fused_dissim_topk,
    last_backend,
    paired_dissim_score,
    quantize_references,
    unavailable_backends,
)
from dissim_kernels import testing as judge
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
    torch.cuda.synchronize()  # a kernel that failed late is this test's failure, not the next one's


def on_device(inputs):
    return move(inputs, "cuda")


def leaves(inputs):
    return [x.detach().clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in inputs]


def labels(rows, columns, classes=7):
    return torch.arange(rows, device="cuda") % classes, torch.arange(columns, device="cuda") * 3 % classes


def calls(inputs, backend):
    """Every operation, forward and backward, of two matrices on the device: name -> a function of nothing."""
    sides = labels(len(inputs.query), len(inputs.reference))
    trained = [x.detach().requires_grad_() for x in inputs]  # of the same memory
    upstream = torch.sin(torch.arange(len(inputs.query) * len(inputs.reference), device="cuda").float())
    upstream = upstream.to(inputs.query.dtype).view(len(inputs.query), -1)

    def score_step():
        scores = fused_dissim_score(*trained, backend=backend)
        return scores.detach(), *torch.autograd.grad(scores, trained, upstream)

    def hinge_step():
        loss = fused_dissim_hinge_loss(*trained, *sides, num_hard_negatives=3, backend=backend)
        return loss.detach(), *torch.autograd.grad(loss, trained)

    found = {
        "score": lambda: (fused_dissim_score(*inputs, backend=backend),),
        "score step": score_step,
        "topk": lambda: fused_dissim_topk(*inputs, k=5, backend=backend),
        "hinge step": hinge_step,
    }
    if backend == "cuda":
        made = quantize_references(inputs.reference, inputs.weight)
        found["quantized_topk"] = lambda: fused_dissim_topk(
            *inputs, k=5, quantized=made, return_stats=True, backend=backend
        )
    return found


def same(a, b):
    return all(torch.equal(x.nan_to_num(12345), y.nan_to_num(12345)) for x, y in zip(a, b, strict=True))


# --- tensors on the device, through the public functions ------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("part", [f"part{n}" for n in range(PARTS)])
def test_scores_and_gradients_of_every_edge_case_input(part, dtype, backend):
    """In parts, because Triton compiles for each kind of size."""
    for name, inputs in list(judge.inputs_that_bite(dtype).items())[int(part[-1]) :: PARTS]:
        exact, found = leaves(inputs.double()), leaves(on_device(inputs))
        expected = judge.plain_score(*exact)
        upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        with judge.poisoned_memory():
            scores = fused_dissim_score(*found, backend=backend)
            scores.backward(upstream.cuda())
        expected.backward(upstream.double())
        judge.assert_within(scores.detach().cpu(), expected.detach(), judge.score_bound(*inputs), name)
        for got, leaf, bound in zip(found, exact, judge.gradient_bounds(upstream, *inputs), strict=True):
            if isinstance(got, torch.Tensor):
                judge.assert_within(got.grad.cpu(), leaf.grad, bound, f"gradient, {name}")


@dtypes
def test_paired_scores(dtype, backend):
    inputs = judge.random_inputs((200, 33), (200, 33), 2, dtype)
    pairs = inputs._replace(query=inputs.query.unsqueeze(-2), reference=inputs.reference.unsqueeze(-2))
    exact, bound = (x.flatten(1) for x in (judge.plain_score(*pairs.double()), judge.score_bound(*pairs)))
    judge.assert_within(paired_dissim_score(*on_device(inputs), backend=backend).cpu(), exact, bound)


@dtypes
def test_the_best_references_of_every_edge_case_input(dtype, backend):
    for inputs in judge.inputs_that_bite(dtype).values():
        if inputs.query.dim() == inputs.reference.dim() == 2 and inputs.weight.dim() == 1 and len(inputs.reference):
            found = fused_dissim_topk(*on_device(inputs), k=len(inputs.reference) // 2 + 1, backend=backend)
            scores = judge.plain_score(*inputs.double())
            judge.assert_topk_equal(*move(tuple(found), "cpu"), scores, judge.score_bound(*inputs))


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [1000, 1003])
def test_a_thousand_best_of_tied_references(k, largest, backend):
    """Exact arithmetic, so that every index must be the one of a stable sort."""
    inputs = judge.tie_grid(70, 9000, 5)
    expected, none = judge.plain_score(*inputs.double()), torch.zeros(70, 9000)
    found = fused_dissim_topk(*on_device(inputs), k=k, largest=largest, backend=backend)
    judge.assert_topk_equal(*move(tuple(found), "cpu"), expected, none, largest=largest)
    if backend == "cuda":
        query, reference, weight, bias = on_device(inputs)
        quantized = quantize_references(reference, weight)
        options = {"k": k, "largest": largest, "backend": backend}
        assert same(fused_dissim_topk(query, reference, weight, bias, quantized=quantized, **options), found)


@on_gpu
@pytest.mark.parametrize("k", [10, 1000])
@pytest.mark.parametrize("largest", [True, False])
def test_the_quantized_search_finds_what_topk_finds(largest, k):
    """More queries than are searched together, and more references than a list of candidates holds."""
    inputs = on_device(judge.random_inputs((700, 64), (200_000, 64)))
    made = quantize_references(inputs.reference, inputs.weight)
    with judge.poisoned_memory():
        found = fused_dissim_topk(*inputs, k=k, quantized=made, largest=largest, return_stats=True, backend="cuda")
    expected = fused_dissim_topk(*inputs, k=k, largest=largest, backend="cuda")
    assert same(found[:2], expected)
    assert (found.rescored >= k).all() and found.rescored.double().mean() < 0.01 * 200_000 + 5 * k


@dtypes
def test_loss_and_gradients_of_a_training_step(dtype, backend):
    inputs = judge.random_inputs((130, 16), (300, 16), dtype=dtype)
    exact, found, sides = leaves(inputs.double()), leaves(on_device(inputs)), labels(130, 300)
    scores, slope = judge.plain_score(*exact), torch.zeros(130, 300, dtype=torch.float64)
    scores.register_hook(slope.copy_)
    judge.plain_hinge_loss(scores, *move(sides, "cpu")).backward()
    bound = judge.score_bound(*(x.to(ACCUMULATE[dtype]) for x in inputs))
    assert ((scores.abs() - 1).abs() > bound).all(), (
        "draw inputs without a pair that rounding may carry over the margin"
    )
    with judge.poisoned_memory():
        fused_dissim_hinge_loss(*found, *sides, backend=backend).backward()
    for got, leaf, bound in zip(found, exact, judge.gradient_bounds(slope, *inputs, extra=16), strict=True):
        judge.assert_within(got.grad.cpu(), leaf.grad, bound)


# --- streams, graphs, runs ------------------------------------------------------------------------------------------

SHAPES = [((300, 64), (700, 64)), ((3, 99), (5000, 99)), ((1, 128), (70_000, 128))]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@dtypes
@shapes
def test_every_run_gives_the_same_bits(shape, dtype, backend):
    inputs = on_device(judge.random_inputs(*shape, dtype=dtype))
    for name, call in calls(inputs, backend).items():
        first = [x.clone() for x in call()]
        assert all(same(call(), first) for _ in range(5)), name


@shapes
def test_a_captured_graph_follows_its_inputs(shape, backend):
    """Replayed with other numbers in the same memory it gives what a call gives. Nothing may wait for the device."""
    first, second = (on_device(judge.random_inputs(*shape, seed=seed)) for seed in (0, 1))
    inputs = judge.Inputs(*(x.clone() for x in first))
    expected = {name: [x.clone() for x in call()] for name, call in calls(second, backend).items()}
    for name, call in calls(inputs, backend).items():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        with torch.no_grad():
            for to, values in zip(inputs, first if name == "quantized_topk" else second, strict=True):
                to.copy_(values)  # codes are those of the first references
        graph.replay()
        torch.cuda.synchronize()
        assert same(captured, call() if name == "quantized_topk" else expected[name]), name
        with torch.no_grad():
            for to, values in zip(inputs, first, strict=True):
                to.copy_(values)


def test_kernels_run_on_the_current_stream(backend):
    """The inputs are written on that stream after a long wait: a kernel on another one would read what was before."""
    given = on_device(judge.random_inputs((300, 64), (700, 64)))
    expected = {name: [x.clone() for x in call()] for name, call in calls(given, backend).items()}
    inputs = judge.Inputs(*(x.clone() for x in given))
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
        assert same(found, expected[name]), name


def test_a_device_that_is_not_the_current_one(backend):
    """The last one; where there is one only, that one."""
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    inputs = judge.random_inputs((40, 20), (70, 20))
    found = fused_dissim_score(*move(inputs, last), backend=backend)
    assert found.device == last and torch.cuda.current_device() == 0
    judge.assert_within(found.cpu(), judge.plain_score(*inputs.double()), judge.score_bound(*inputs))


def test_a_compiled_module_calls_the_operator(backend):
    inputs = on_device(judge.random_inputs((40, 20), (70, 20)))
    call = torch.compile(lambda *x: fused_dissim_score(*x, backend=backend) * 2, backend="aot_eager", fullgraph=True)
    assert torch.equal(call(*inputs), fused_dissim_score(*inputs, backend=backend) * 2)


# --- sizes beyond 32 bits and beyond a grid's limits ----------------------------------------------------------------


def test_more_scores_than_32_bits_count(backend):
    inputs = on_device(judge.tie_grid(40_000, 60_000, 3, torch.float16))
    scores = fused_dissim_score(*inputs, backend=backend)
    rows = torch.tensor([0, 1, 17_895, 35_791, 35_792, 39_999], device="cuda")  # 2**31 / 60,000 = 35,791.4
    assert torch.equal(scores[rows], judge.plain_score(inputs.query[rows], *inputs[1:]))


def test_more_numbers_in_the_references_than_32_bits_count(backend):
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
    """65,535; values of exact arithmetic, so that sums of any order are equal."""
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


# --- devices that a backend was not compiled for --------------------------------------------------------------------


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
def test_a_device_below_every_image_is_an_error_in_words():
    """In a fresh process, for a device is asked once."""
    done = subprocess.run([sys.executable, "-c", OLD_DEVICE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("cuda", "triton"):
        assert re.search(f"backend '{name}' cannot run this call: .*8.0 or more", done.stdout), done.stdout


@on_gpu
def test_a_device_without_an_image_goes_on_to_triton(monkeypatch):
    """A build for this card alone, on one of a later generation."""
    reason = "it has no image for this device, in this test"
    monkeypatch.setattr(dispatch.BACKENDS["cuda"], "unsupported_reason", lambda problem: reason)
    inputs = judge.random_inputs((4, 5), (6, 5))
    found = fused_dissim_score(*on_device(inputs))
    assert last_backend() == "triton"
    judge.assert_within(found.cpu(), judge.plain_score(*inputs.double()), judge.score_bound(*inputs))
    with pytest.raises(RuntimeError, match=reason):
        fused_dissim_score(*on_device(inputs), backend="cuda")
