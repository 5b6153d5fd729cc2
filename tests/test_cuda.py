"""CUDA's kernels, executed on the CPU from their own sources: the tests of every backend, launches that fail, and the
cost of a large k."""

import ctypes
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_on_host import backend

from dissim_kernels import testing as judge
from dissim_kernels.contract import HingeArguments, HingeBackwardArguments, TopKArguments

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(backend.unsupported_reason() is not None, reason=str(backend.unsupported_reason()))
#: file -> how many of its tests take a backend, at least
OF_EVERY_BACKEND = {"test_score.py": 230, "test_topk.py": 26, "test_hinge.py": 85, "test_quantized_topk.py": 28}


@pytest.fixture(scope="session")
def library():
    return backend.build_library()


@pytest.mark.parametrize("file", OF_EVERY_BACKEND)
def test_the_tests_of_every_backend_pass(file, library):
    script = (
        "import sys, pytest; from pathlib import Path; from cuda_on_host import backend\n"
        "backend.install(Path(sys.argv[1])); sys.exit(pytest.main(sys.argv[2:]))"
    )
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-k", "cuda", str(TESTS / file)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(library), *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.stdout.count(".") >= OF_EVERY_BACKEND[file]


@pytest.mark.parametrize("shape", [lambda x: x, torch.relu], ids=["normal", "post-ReLU"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_matrix_units_err_at_most_four_times_as_much_as_float32(dtype, shape, library):
    """For each pair a head whose bias takes the pair's score away, so that the result's dtype hides no error."""
    torch.ops.load_library(library)
    rng = torch.Generator().manual_seed(0)
    query, reference = (shape(torch.randn(1, 5, 512, generator=rng)).to(dtype) for _ in range(2))
    weight = 64 * torch.randn(512, generator=rng)
    exact = judge.plain_score(query.double(), reference.double(), weight.double(), None).flatten()
    bias = -exact.float()

    def errors(query, reference):
        scores = query.new_empty(1, 25, 5, 5)
        torch.ops.dissim_cuda_on_host.score(query, reference, weight.expand(25, 512).contiguous(), bias, scores)
        return scores.reshape(25, 25).diagonal().double() - (exact + bias.double())

    of_max, of_float32 = errors(query, reference), errors(query.float(), reference.float())
    assert not torch.equal(of_max, of_float32) and of_max.norm() <= 4 * of_float32.norm()


# --- launches that fail ------------------------------------------------------------------------------------------

NO_IMAGE = 209  # cudaErrorNoKernelImageForDevice
#: of every kernel, as the launchers name it
KERNELS = {
    name
    for path in (backend.ROOT / "csrc" / "cuda").glob("*.cu*")
    for name in re.findall(r'launch\(\s*"(\w+)"', path.read_text())
}


def calls_of_every_kernel(cuda):
    """operation -> a call; together they launch every kernel."""
    query, reference, weight, bias = judge.random_inputs((130, 40), (131, 40))
    half = [x[None].half() for x in (query, reference)]
    bias, labels, other_labels = bias[None], torch.arange(130) % 4, torch.arange(131) % 4
    search = TopKArguments(query, reference, weight, bias, 5, True, None, None, None)
    hinge = HingeArguments(query, reference, weight, bias, labels, other_labels, None, 1.0, 3)
    active = torch.full((130, 17), 1, dtype=torch.uint8)
    backward = HingeBackwardArguments(torch.ones(130), torch.ones(130), active, *hinge[:3], labels, other_labels)
    codes = cuda.quantize_references(reference, weight)
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
    }


def test_a_launch_that_fails_raises_with_kernel_device_and_remedy(library):
    """Each call of the runtime fails once, of launches and of attributes; no result is returned then."""
    fail = ctypes.CDLL(str(library)).cuda_on_host_fail
    named = set()
    for operation, call in calls_of_every_kernel(backend.load(library)).items():
        failures = 0
        while True:
            fail(failures, NO_IMAGE)
            try:
                call()
            except RuntimeError as error:
                words = str(error)
            else:
                break
            finally:
                fail(-1, 0)
            failures += 1
            named |= set(re.findall(r"the launch of (\w+) failed", words))
            assert "cuda:3 (a GPU on the host, compute capability 7.5)" in words
            assert "cudaErrorNoKernelImageForDevice" in words and "TORCH_CUDA_ARCH_LIST" in words
        assert failures, operation
    assert named == KERNELS


def test_a_torch_without_streams_of_cuda_is_told():
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
    """Basic blocks that all threads of a top-k execute, and its scratch; of queries, references, k."""
    done = subprocess.run([backend.build_steps(), *map(str, arguments)], capture_output=True, text=True, check=True)
    return map(int, done.stdout.split())


def test_selecting_and_merging_cost_no_more_than_a_sort():
    """Beside what k = 1 takes, n log n steps of a few blocks, n the candidates of all splits; not n squared."""
    rows, splits = 40_000, {1000: 26, 10_000: 8}
    baseline, _ = steps_and_bytes(1, rows, 1)
    for k, count in splits.items():
        steps, _ = steps_and_bytes(1, rows, k)
        n = count * k
        assert 0 < steps - baseline <= 4 * n * math.log2(n)


def test_scratch_is_bounded():
    """The result has 12 bytes a place. One split needs 1.25 times as much or 32 places more; more splits, 1 GiB."""
    for queries, rows, k in ((1, 10**6, 10), (128, 10**6, 1000), (10**4, 10**6, 1000), (10**5, 10**6, 10**4)):
        _, scratch = steps_and_bytes(queries, rows, k, "bytes")
        assert 0 < scratch <= max(12 * queries * (k + max(32, k // 4)), 2**30)
