"""CUDA's kernels, executed on the CPU, watched by sanitizers; and the watching, tested with planted bugs."""

import os
import shutil
import subprocess

import pytest
from cuda_on_host import backend

pytestmark = pytest.mark.skipif(backend.unsupported_reason() is not None, reason=str(backend.unsupported_reason()))
#: a planted bug: file, the line (the first such), what takes its place, the sanitizer, what is printed
BUGS = {
    "a missing barrier": ("tile.cuh", "    __syncthreads();\n", "", "thread", "data race"),
    "a wait for the wrong copies": (
        "tile.cuh",
        "    wait_group<0>();\n",
        "    wait_group<1>();\n",
        "thread",
        "data race",
    ),
}


def check(program, **settings):
    """What native_check prints, on few sizes, and whether all is well."""
    options = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1", **settings}
    done = subprocess.run([program, "quick"], env={**os.environ, **options}, capture_output=True, text=True)
    return done.stdout + done.stderr, done.returncode == 0 and "every kernel is right" in done.stdout


OTHER_ORDER = {"DISSIM_HOST_ORDER": "reverse", "DISSIM_HOST_COPIES": "early"}


@pytest.mark.parametrize(
    ("sanitizer", "settings"), [("address", {}), ("thread", {}), ("thread", OTHER_ORDER)], ids=str
)
def test_sanitizers_find_nothing(sanitizer, settings):
    printed, well = check(backend.build_check(sanitizer), **settings)
    assert well, printed[-3000:]


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_found(name, tmp_path):
    file, line, instead, sanitizer, found = BUGS[name]
    csrc = tmp_path / "csrc"
    shutil.copytree(backend.ROOT / "csrc", csrc)
    text = (csrc / "cuda" / file).read_text()
    assert line in text
    (csrc / "cuda" / file).write_text(text.replace(line, instead, 1))
    printed, well = check(backend.build_check(sanitizer, "planted", csrc))
    assert not well and found in printed, printed[-3000:]
