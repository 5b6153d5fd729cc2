"""The CUDA kernels, executed on the CPU under sanitizers, which must also find planted bugs."""

import os
import shutil
import subprocess

import pytest
from cuda_on_host import backend

pytestmark = pytest.mark.skipif(backend.unsupported_reason() is not None, reason=str(backend.unsupported_reason()))
#: Planted bug -> file, the line that is replaced (its first occurrence), its replacement, sanitizer, its message.
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
    """The output of native_check on few sizes, and whether every kernel is right."""
    options = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1", **settings}
    done = subprocess.run([program, "quick"], env={**os.environ, **options}, capture_output=True, text=True)
    return done.stdout + done.stderr, done.returncode == 0 and "every kernel is right" in done.stdout


OTHER_ORDER = {"DISSIM_HOST_ORDER": "reverse", "DISSIM_HOST_COPIES": "early"}


@pytest.mark.parametrize(
    ("sanitizer", "settings"), [("address", {}), ("thread", {}), ("thread", OTHER_ORDER)], ids=str
)
def test_sanitizers_report_no_error(sanitizer, settings):
    printed, passed = check(backend.build_check(sanitizer), **settings)
    assert passed, printed[-3000:]


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_found(name, tmp_path):
    file, line, replacement, sanitizer, message = BUGS[name]
    csrc = tmp_path / "csrc"
    shutil.copytree(backend.ROOT / "csrc", csrc)
    text = (csrc / "cuda" / file).read_text()
    assert line in text
    (csrc / "cuda" / file).write_text(text.replace(line, replacement, 1))
    printed, passed = check(backend.build_check(sanitizer, "planted", csrc))
    assert not passed and message in printed, printed[-3000:]
