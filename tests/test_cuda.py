"""CUDA's kernels, executed on the CPU from their own sources: the tests of every backend, and sanitizers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_on_host import backend

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(backend.why_not() is not None, reason=str(backend.why_not()))
#: file -> how many of its tests at least, and which; the largest inputs take minutes where threads are fibers.
CHOSEN = {
    "test_score.py": (
        21,
        "those_of_the_definition and (float32 or float16) and not tall and not wide and not several",
    ),
    "test_topk.py": (10, "nan or exclude or too_few or wide_scores or labels or (ties and True)"),
    "test_hinge.py": (48, "nan or empty or costs_nothing or strided or labels or none-classes-torch.float"),
}


@pytest.fixture(scope="session")
def library():
    return backend.build_library()


@pytest.mark.parametrize("file", CHOSEN)
def test_the_tests_of_every_backend_pass(file, library):
    script = (
        "import sys, pytest; from pathlib import Path; from cuda_on_host import backend\n"
        "backend.install(Path(sys.argv[1])); sys.exit(pytest.main(sys.argv[2:]))"
    )
    least, chosen = CHOSEN[file]
    choice = f"cuda and ({chosen})"
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-k", choice, str(TESTS / file)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(library), *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.stdout.count(".") >= least
