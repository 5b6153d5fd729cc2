"""The CUDA kernels, compiled for and executed on the CPU: the tests of every backend, failed launches, a large k."""

import ctypes
import math
import re
import subprocess
import sys

import pytest
import torch
from cuda_on_host import backend, selected

from dissim_kernels import testing
from dissim_kernels.contract import (
    HingeArguments,
    HingeBackwardArguments,
    LogSumExpArguments,
    RankArguments,
    TopKArguments,
)

pytestmark = pytest.mark.skipif(backend.unsupported_reason() is not None, reason=str(backend.unsupported_reason()))


@pytest.fixture(scope="session")
def library():
    return backend.build_library()


def test_the_tests_of_every_backend_pass(library):
    passed, counts, printed = selected.run(library)
    assert passed, printed
    assert all(counts[file] >= minimum for file, minimum in selected.FILES.items()), counts


@pytest.mark.parametrize("shape", [lambda x: x, torch.relu], ids=["normal", "post-ReLU"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_matrix_unit_error_is_at_most_four_times_the_float32_error(dtype, shape, library):
    """Each pair has its own head, whose bias cancels the pair's score, so that the result's dtype hides no error."""
    torch.ops.load_library(library)
    rng = torch.Generator().manual_seed(0)
    query, reference = (shape(torch.randn(1, 5, 512, generator=rng)).to(dtype) for _ in range(2))
    weight = 64 * torch.randn(512, generator=rng)
    exact = testing.plain_score(query.double(), reference.double(), weight.double(), None).flatten()
    bias = -exact.float()

    def errors(query, reference):
        scores = query.new_empty(1, 25, 5, 5)
        torch.ops.dissim_cuda_on_host.score(query, reference, weight.expand(25, 512).contiguous(), bias, scores)
        return scores.reshape(25, 25).diagonal().double() - (exact + bias.double())

    max_form, direct = errors(query, reference), errors(query.float(), reference.float())
    assert not torch.equal(max_form, direct) and max_form.norm() <= 4 * direct.norm()


# --- failed launches ---------------------------------------------------------------------------------------------

NO_IMAGE = 209  # cudaErrorNoKernelImageForDevice
#: The names of all kernels in the launchers.
KERNELS = {
    name
    for path in (backend.ROOT / "csrc" / "cuda").glob("*.cu*")
    for name in re.findall(r'launch\(\s*"(\w+)"', path.read_text())
}


def calls_of_every_kernel(cuda):
    """Operation -> a call. Together they launch every kernel."""
    query, reference, weight, bias = testing.random_inputs((130, 40), (131, 40))
    half = [x[None].half() for x in (query, reference)]
    bias, labels, other_labels = bias[None], torch.arange(130) % 4, torch.arange(131) % 4
    search = TopKArguments(query, reference, weight, bias, 5, True, None, None, None)
    hinge = HingeArguments(query, reference, weight, bias, labels, other_labels, None, 1.0, 3)
    active = torch.full((130, 17), 1, dtype=torch.uint8)
    backward = HingeBackwardArguments(torch.ones(130), torch.ones(130), active, *hinge[:3], labels, other_labels)
    codes = cuda.quantize_references(reference, weight)
    sums = LogSumExpArguments(query, reference, weight, bias, torch.ones(1), labels, other_labels, None, "same")
    lists = torch.arange(131), torch.arange(130)  # a pair for each query
    ranked = RankArguments(query, reference, weight, bias, *lists, torch.zeros(130))
    return {
        "score": lambda: cuda.score(query[None], reference[None], weight[None], bias),
        "score of few rows": lambda: cuda.score(query[None, :2], reference[None], weight[None], bias),
        "score of halves": lambda: cuda.score(*half, weight[None], bias),
        "score_backward": lambda: cuda.score_backward(
            torch.ones(1, 1, 130, 131), query[None], reference[None], weight[None], (True, True, True)
        ),
        "topk": lambda: cuda.topk(search),
        "hinge": lambda: cuda.hinge(hinge),
        "hinge_backward": lambda: cuda.hinge_backward(backward, (True, True, True, True)),
        "quantized_topk": lambda: cuda.quantized_topk(search, codes),
        "logsumexp": lambda: cuda.logsumexp(sums),
        "listed_scores": lambda: cuda.listed_scores(query, reference, weight, bias, *lists),
        "rank": lambda: cuda.rank(ranked),
    }


def test_failed_launches_raise_with_kernel_device_and_remedy(library):
    """Each call of the runtime that launches or sets attributes fails once, and no result is returned then."""
    fail = ctypes.CDLL(str(library)).cuda_on_host_fail
    named = set()
    for operation, call in calls_of_every_kernel(backend.load(library)).items():
        failures = 0
        while True:
            fail(failures, NO_IMAGE)
            try:
                call()
            except RuntimeError as error:
                message = str(error)
            else:
                break
            finally:
                fail(-1, 0)
            failures += 1
            named |= set(re.findall(r"the launch of (\w+) failed", message))
            assert "cuda:3 (a GPU on the host, compute capability 7.5)" in message
            assert "cudaErrorNoKernelImageForDevice" in message and "TORCH_CUDA_ARCH_LIST" in message
        assert failures, operation
    assert named == KERNELS


def test_torch_without_cuda_streams_raises():
    script = (
        "import sys, torch; torch.ops.load_library(sys.argv[1]); x = torch.ones(1, 2, 3)\n"
        "torch.ops.dissim_cuda_on_host.score(x, x, torch.ones(1, 3), None, torch.ones(1, 1, 2, 2))"
    )
    library = backend.build_library(stream=False)
    done = subprocess.run([sys.executable, "-c", script, str(library)], capture_output=True, text=True)
    assert "expected torch's CUDA library (libtorch_cuda.so) to be loaded, found none" in done.stderr
    assert "Install a CUDA build of torch" in done.stderr and done.returncode == 1


# --- a large k ---------------------------------------------------------------------------------------------------


def steps_and_bytes(*arguments):
    """The basic blocks that all threads of a top-k execute, and its scratch bytes; of queries, references, k."""
    done = subprocess.run([backend.build_steps(), *map(str, arguments)], capture_output=True, text=True, check=True)
    return map(int, done.stdout.split())


def test_selection_and_merging_take_n_log_n_steps():
    """A large k adds n log n steps to those of k = 1, for n candidates in all splits, not n squared."""
    rows, splits = 40_000, {1000: 26, 10_000: 8}
    baseline, _ = steps_and_bytes(1, rows, 1)
    for k, count in splits.items():
        steps, _ = steps_and_bytes(1, rows, k)
        n = count * k
        assert 0 < steps - baseline <= 4 * n * math.log2(n)


def test_scratch_is_bounded():
    """The result has 12 bytes per entry. One split takes 1.25 times as much or 32 entries more, several 1 GiB."""
    for queries, rows, k in ((1, 10**6, 10), (128, 10**6, 1000), (10**4, 10**6, 1000), (10**5, 10**6, 10**4)):
        _, scratch = steps_and_bytes(queries, rows, k, "bytes")
        assert 0 < scratch <= max(12 * queries * (k + max(32, k // 4)), 2**30)
