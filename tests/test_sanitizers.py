"""The CUDA kernels, executed on the CPU under sanitizers, which must also find planted bugs."""

import shutil

import pytest
from cuda_on_host import backend
from native_check import SANITIZED_RUNS, run_sanitized

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


@pytest.mark.parametrize(("sanitizer", "settings"), SANITIZED_RUNS, ids=str)
def test_sanitizers_report_no_error(sanitizer, settings):
    printed, passed = run_sanitized(backend.build_check(sanitizer), **settings)
    assert passed, printed[-3000:]


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_found(name, tmp_path):
    """In the score kernels, which run first."""
    file, line, replacement, sanitizer, message = BUGS[name]
    csrc = tmp_path / "csrc"
    shutil.copytree(backend.ROOT / "csrc", csrc)
    text = (csrc / "cuda" / file).read_text()
    assert line in text
    (csrc / "cuda" / file).write_text(text.replace(line, replacement, 1))
    printed, passed = run_sanitized(backend.build_check(sanitizer, "planted", csrc / "cuda" / "score.cu"))
    assert not passed and message in printed, printed[-3000:]
