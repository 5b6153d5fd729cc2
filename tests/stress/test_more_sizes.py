"""Checks that the short tests reduce: dtypes under sanitizers, NEON kernels as shipped, poisoned memory."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
from cuda_on_host import backend
from instruction_sets import HERE, check_operators
from native_check import RIGHT, SANITIZED_RUNS, no_emulator, run_neon, run_sanitized


@pytest.mark.skipif(backend.unsupported_reason() is not None, reason=str(backend.unsupported_reason()))
@pytest.mark.parametrize(("sanitizer", "settings"), SANITIZED_RUNS, ids=str)
def test_sanitizers_report_no_error(sanitizer, settings):
    printed, passed = run_sanitized(backend.build_check(sanitizer), "two-sizes", **settings)
    assert passed, printed[-3000:]


@pytest.mark.skipif(no_emulator() is not None, reason=str(no_emulator()))
def test_optimized_neon_kernels_under_an_emulator(tmp_path):
    assert run_neon(tmp_path, "-O3") == RIGHT


def test_best_instruction_set_reads_no_unwritten_memory():
    check_operators(HERE[0])
