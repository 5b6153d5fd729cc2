"""What only a GPU can show: the operations on a CUDA device against the CPU's, in a graph, without a synchronisation.

`make test-gpu` runs what is marked gpu; without a device it skips, and says so. The model's arithmetic is tested
everywhere.
"""

import pytest
import torch

from bench import gpu, gpu_model
from bench.cases import GPU_CASES, Case
from dissim_kernels import (
    available_backends,
    certified_dissim_topk,
    fused_dissim_hinge_loss,
    fused_dissim_score,
    fused_dissim_topk,
    quantise_references,
)
from dissim_kernels import testing as judge

MISSING = gpu.why_not()
on_gpu = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
backends = pytest.mark.parametrize("backend", ["cuda", "triton"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)


def on_device(inputs):
    return judge.Inputs._make(x.cuda() if isinstance(x, torch.Tensor) else x for x in inputs)


def skip_if_absent(backend):
    if reason := available_backends().get(backend, "there is no such backend"):
        pytest.skip(reason)


@pytest.mark.gpu
@on_gpu
@backends
@dtypes
def test_scores_of_every_input_that_bites(dtype, backend):
    skip_if_absent(backend)
    for name, inputs in judge.inputs_that_bite(dtype).items():
        with judge.poisoned_memory():
            scores = fused_dissim_score(*on_device(inputs), backend=backend)
        judge.assert_within(scores.cpu(), judge.plain_score(*inputs.double()), judge.score_bound(*inputs), name)


@pytest.mark.gpu
@on_gpu
@backends
@dtypes
def test_the_best_references(dtype, backend):
    skip_if_absent(backend)
    for inputs in judge.inputs_that_bite(dtype).values():
        if inputs.query.dim() == inputs.reference.dim() == 2 and inputs.weight.dim() == 1 and len(inputs.reference):
            found = fused_dissim_topk(*on_device(inputs), k=len(inputs.reference) // 2 + 1, backend=backend)
            scores = judge.plain_score(*inputs.double())
            judge.assert_topk_equal(*(part.cpu() for part in found), scores, judge.score_bound(*inputs))


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("largest", [True, False])
def test_the_certified_search_finds_the_bits_of_topk_and_can_be_captured(largest):
    """More queries than are searched together."""
    skip_if_absent("cuda")
    query, reference, weight, bias = judge.random_inputs((700, 64), (400_000, 64))
    inputs = on_device(judge.Inputs(query, reference, weight, bias))
    made = quantise_references(inputs.reference, inputs.weight)

    def search():
        return certified_dissim_topk(*inputs, k=10, quantised=made, largest=largest, backend="cuda")

    with judge.poisoned_memory():
        found = search()
    expected = fused_dissim_topk(*inputs, k=10, largest=largest, backend="cuda")
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.scores, expected.scores)
    assert (found.rescored >= 10).all() and found.rescored.double().mean() < 0.01 * len(reference)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = search()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, found, strict=True))


@pytest.mark.gpu
@on_gpu
@backends
def test_gradients_of_a_training_step_are_right_and_a_graph_gives_the_same_bits(backend):
    skip_if_absent(backend)
    inputs, labels = judge.random_inputs((300, 64), (700, 64)), torch.arange(1000) % 7
    exact = [x.double().requires_grad_() for x in inputs]
    scores, slope = judge.plain_score(*exact), torch.zeros(300, 700, dtype=torch.float64)
    scores.register_hook(slope.copy_)
    judge.plain_hinge_loss(scores, labels[:300], labels[300:]).backward()

    leaves = [x.detach().requires_grad_() for x in on_device(inputs)]
    sides = labels[:300].cuda(), labels[300:].cuda()

    def step():
        return torch.autograd.grad(fused_dissim_hinge_loss(*leaves, *sides, backend=backend), leaves)

    with judge.poisoned_memory():
        found = step()
    for got, leaf, bound in zip(found, exact, judge.gradient_bounds(slope, *inputs, extra=16), strict=True):
        judge.assert_within(got.cpu(), leaf.grad, bound)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, found, strict=True))


# --- the model ------------------------------------------------------------------------------------------------------


def test_clocks_are_those_of_the_data_sheets():
    clocks = {gpu.name: round(gpu.clock / 1e9, 2) for gpu in gpu_model.GPUS}
    assert clocks == {"A100": 1.41, "H100": 1.98, "H200": 1.98, "B200": 1.98}


def test_what_binds_is_what_takes_longest():
    h100 = next(gpu for gpu in gpu_model.GPUS if gpu.name == "H100")
    case = Case("", "score", 4096, 65_536, 512)

    def predicted(**opcodes):
        return gpu_model.predict(case, gpu_model.Contender("", (gpu_model.Work({90: opcodes}),)), h100)

    by_issue = predicted(FADD=1, FFMA=1, BRA=0.1)
    assert by_issue.bound == "issue"
    assert by_issue.seconds == pytest.approx(case.elements * 2.1 / (67e12 / 2) + gpu_model.LAUNCH_SECONDS)
    assert predicted(HMNMX2=1).bound == "integer" and predicted(LDS=1, FADD=1).bound == "shared memory"
    assert predicted(FADD=0.001).bound == "memory"


def test_every_case_has_its_kernels_named_and_a_peers_count():
    for kernels in gpu_model.KERNELS.values():
        assert {case.operation for case in GPU_CASES} <= set(kernels)
    assert sum(gpu_model.CDIST[90].values()) == 15
    assert sum(gpu_model.FAISS[80].values()) == pytest.approx(166 / 32)


def test_of_few_active_pairs_only_these_are_counted_and_the_cache_that_gives_their_rows():
    h100 = next(gpu for gpu in gpu_model.GPUS if gpu.name == "H100")
    kernels = ("hinge", "hinge_backward", "hinge_backward few query", "hinge_backward few reference")
    counts = {f"{kernel} fp32": {90: {"FFMA": 2.0}} for kernel in kernels}

    def works(active):
        case = Case("", "hinge_step", 4096, 16_384, 512, active=active)
        (ours,) = gpu_model.ours(case, counts)
        return case, ours, [(work.share, work.l2_bytes) for work in ours.works]

    assert works(0.5)[2] == [(1, 0), (1, 0)]
    case, ours, shares = works(0.01)
    assert shares == [(1, 0), (0.01, 4), (0.01, 4)]
    forward, rows = case.elements * 2 / (67e12 / 2), case.elements * 0.01 * 8 / (5120 * h100.clock)
    launches = sum(work.launches for work in ours.works) * gpu_model.LAUNCH_SECONDS
    assert gpu_model.predict(case, ours, h100).seconds == pytest.approx(forward + rows + launches)


def test_without_a_gpu_the_benchmark_skips_and_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench.gpu"])
    assert gpu.main() == 0
    assert "no CUDA device" in capsys.readouterr().out
