"""Which tests of the operators the emulated CUDA kernels run: all, but the slow ones only in tests/stress/."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
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
    "test_topk.py": "edge_case and (True and float64 or False and float32)",
    "test_quantized_topk.py": "(edge_case and not (part0 and float64 or part1 and float32 or part2 and bfloat16"
    " or part3 and torch.float16)) or False and (queries_and_filters and 300 or ties_everywhere and 2500)",
}


def run(library: Path, *, slow: bool = False) -> tuple[bool, Counter[str], str]:
    """Whether the tests pass with the backend "cuda" of that library, how many of each file do, and the output.

    In one process, because importing torch and the tests takes seconds.
    """
    script = (
        "import sys, pytest; from pathlib import Path; from cuda_on_host import backend\n"
        "backend.install(Path(sys.argv[1])); sys.exit(pytest.main(sys.argv[2:]))"
    )
    if slow:
        chosen = {file: f"({expression})" for file, expression in SLOW.items()}
    else:
        chosen = {file: f"not ({SLOW[file]})" if file in SLOW else "" for file in FILES}
    expression = " or ".join(f"cuda and {file}" + (f" and {rest}" if rest else "") for file, rest in chosen.items())
    files = [str(TESTS / file) for file in chosen]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", script, str(library), "-vv", "-p", "no:cacheprovider", "-k", expression, *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    passed = Counter(re.findall(r"(test_\w+\.py)::.* PASSED", done.stdout))
    return done.returncode == 0, passed, done.stdout[-3000:] + done.stderr[-1000:]
