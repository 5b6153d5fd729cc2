"""Which tests of the operators the emulated CUDA kernels run: all, but the slow ones only in tests/stress/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
#: Test file -> the minimum number of its tests with a backend, without the slow ones.
FILES = {
    "test_score.py": 230,
    "test_topk.py": 26,
    "test_hinge.py": 85,
    "test_quantized_topk.py": 28,
    "test_logsumexp.py": 20,
    "test_rank.py": 5,
}
#: Test file -> an expression (-k) for slow tests, whose code paths others run as well: other k of the edge cases, in
#: each dtype but one; the same sizes with the other order of the scores.
SLOW = {
    "test_quantized_topk.py": "(edge_case and not (part0 and float64 or part1 and float32 or part2 and bfloat16"
    " or part3 and torch.float16)) or False and (queries_and_filters and 300 or ties_everywhere and 2500)",
}


def run(file: str, library: Path, *, slow: bool = False) -> tuple[bool, int, str]:
    """Whether the tests pass with the backend "cuda" of that library, how many ran, and what they printed."""
    script = (
        "import sys, pytest; from pathlib import Path; from cuda_on_host import backend\n"
        "backend.install(Path(sys.argv[1])); sys.exit(pytest.main(sys.argv[2:]))"
    )
    chosen = "cuda" if file not in SLOW else f"cuda and ({SLOW[file]})" if slow else f"cuda and not ({SLOW[file]})"
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-k", chosen, str(TESTS / file)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(library), *arguments], env=environment, capture_output=True, text=True
    )
    return done.returncode == 0, done.stdout.count("."), done.stdout[-3000:] + done.stderr[-1000:]
