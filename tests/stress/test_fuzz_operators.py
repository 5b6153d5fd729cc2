"""200,000 random calls of all operators (tests/fuzz), and as many under the address sanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dissim_kernels.backends import native

ROOT = Path(__file__).parents[2]
COUNT = 200_000
pytestmark = pytest.mark.skipif(native.NOT_LOADED is not None, reason=str(native.NOT_LOADED))


def fuzz(seed, count, **settings):
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        ROOT / "tests" / "fuzz",
        "--seed",
        str(seed),
        "--count",
        str(count),
    ]
    settings = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **settings}
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    print(done.stdout)
    return done.stdout


def test_every_operator():
    fuzz(0, COUNT)


@pytest.fixture(scope="module")
def sanitized_package():
    """A folder with a copy of the package, compiled with the address sanitizer."""
    folder = ROOT / "build" / "address"
    settings = {**os.environ, "CXXFLAGS": "-O1 -g1 -fsanitize=address -fno-omit-frame-pointer", "FORCE_CUDA": "0"}
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        folder,
        "--build-temp",
        folder / "objects",
    ]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    ours = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "dissim_kernels", folder / "dissim_kernels", ignore=ours, dirs_exist_ok=True)
    assert b"__asan_report_load" in (folder / "dissim_kernels" / "_native.so").read_bytes()
    return folder


def library(name):
    return subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(("isa", "count"), [("", COUNT), ("plain", COUNT // 10), ("avx2", COUNT // 10)])
def test_no_operator_accesses_memory_out_of_bounds(isa, count, sanitized_package):
    if isa and isa not in native.operators.isas().split():
        pytest.skip(f"this machine does not run the instruction set {isa}")
    libraries = [
        library("libasan.so"),
        library("libstdc++.so.6"),  # without it the sanitizer cannot intercept exceptions
    ]
    if not all(Path(path).is_absolute() for path in libraries):
        pytest.skip("g++ has no libasan.so here")
    settings = {
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(sanitized_package),
    }
    assert str(sanitized_package) in fuzz(1, count, DISSIM_ISA=isa, **settings)
