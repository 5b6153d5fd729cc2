"""The tests of the operators that are slow on emulated GPU kernels: CUDA on the CPU, Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
from cuda_on_host import backend, selected

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(backend.unsupported_reason() is not None, reason=str(backend.unsupported_reason()))
def test_slow_tests_pass_with_cuda():
    passed, counts, printed = selected.run(backend.build_library(), slow=True)
    assert passed and counts.keys() == selected.SLOW.keys(), printed


def test_slow_tests_of_the_hinge_pass_with_triton():
    pytest.importorskip("triton", reason="Triton is not installed")
    settings = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton and (sparse_and and float or sparse_pairs_of)"]
    done = subprocess.run([*command, "tests/test_hinge.py"], env=settings, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(".") > 5, done.stdout[-3000:]
