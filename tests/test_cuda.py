"""CUDA's kernels, executed on the CPU from their own sources: the tests of every backend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_on_host import backend

from dissim_kernels import testing as judge

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(backend.why_not() is not None, reason=str(backend.why_not()))
#: file -> how many of its tests take a backend, at least
OF_EVERY_BACKEND = {"test_score.py": 230, "test_topk.py": 20, "test_hinge.py": 85, "test_certified.py": 28}


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
