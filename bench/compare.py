"""`python -m bench.compare REVISION`: is this tree as fast as that commit, and are its results bit-identical?

Both trees run in processes of their own and take turns, so that a slow minute of the machine meets both. A number is
the minimum of all rounds. `--worker` is what such a process runs. Exit code 1 if an operation became slower than
`--limit` allows or gives other bits.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: A turn repeats short calls until it has lasted so long.
MIN_ROUND_SECONDS = 0.05


def tree_of(revision: str) -> Path:
    """A folder is taken as it is; a commit is unpacked into build/compare and built there, once."""
    if Path(revision).is_dir():
        return Path(revision).absolute()
    commit = subprocess.check_output(["git", "rev-parse", f"{revision}^{{commit}}"], cwd=ROOT, text=True).strip()
    folder = ROOT / "build" / "compare" / commit
    if not (folder / "built").exists():
        archive = subprocess.check_output(["git", "archive", commit], cwd=ROOT)
        with tarfile.open(fileobj=io.BytesIO(archive)) as file:
            file.extractall(folder, filter="data")
        subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, check=True)
        (folder / "built").touch()
    return folder


class Worker:
    """One tree's process; it answers each request with one line of JSON."""

    def __init__(self, tree: Path):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "python")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: object):
        assert self.process.stdin and self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"bench.compare: the process of {self.process.args} ended, see its error above.")
        return json.loads(answer)


def work() -> None:
    """The process of one tree, which is the current folder."""
    sys.path[0] = os.getcwd()  # this file's own folder stood there
    from bench import ours  # noqa: F401  (it registers itself)
    from bench.cases import CASES
    from bench.problem import make
    from bench.registry import competitors_of

    calls = {}

    def prepare(case: str) -> str:
        """Makes the case's call and returns a digest of its result."""
        import torch

        chosen = next(row for row in CASES if row.name == case)
        calls["now"] = next(row for row in competitors_of(chosen) if row.ours).prepare(make(chosen))
        result = calls["now"]()
        tensors = [result] if isinstance(result, torch.Tensor) else list(result)
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def seconds(repeats: int) -> float:
        calls["now"]()
        start = time.perf_counter()
        for _ in range(repeats):
            calls["now"]()
        return (time.perf_counter() - start) / repeats

    actions = {"prepare": prepare, "seconds": seconds}
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(actions[request.pop("action")](**request)), flush=True)


def compare(case: str, trees: dict[str, Worker], rounds: int) -> tuple[dict[str, float], bool]:
    """The minimum seconds of each tree's call, and whether the results are bit-identical."""
    digests = {worker.ask(action="prepare", case=case) for worker in trees.values()}
    single = min(worker.ask(action="seconds", repeats=1) for worker in trees.values())
    repeats = max(1, round(MIN_ROUND_SECONDS / single))
    best = dict.fromkeys(trees, float("inf"))
    for turn in range(rounds):
        for name in sorted(trees, reverse=turn % 2 == 1):
            best[name] = min(best[name], trees[name].ask(action="seconds", repeats=repeats))
    return best, len(digests) == 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("revision", help="a commit, or the folder of a tree that is built")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=1.05, help="how many times as long an operation may take")
    parser.add_argument("--only", default=[""], nargs="+", metavar="TEXT", help="only cases named with one of these")
    options = parser.parse_args()
    from bench.cases import CASES

    cases = [case.name for case in CASES if any(text in case.name for text in options.only)]
    trees = {"before": Worker(tree_of(options.revision)), "now": Worker(ROOT)}
    failed = []
    print(f"{'case':36} {'before, ms':>12} {'now, ms':>12} {'ratio':>7}  bits", flush=True)
    for case in cases:
        best, identical = compare(case, trees, options.rounds)
        ratio = best["now"] / best["before"]
        bits = "identical" if identical else "differ"
        print(f"{case:36} {best['before'] * 1e3:12.3f} {best['now'] * 1e3:12.3f} {ratio:7.3f}  {bits}", flush=True)
        failed += [case] if ratio > options.limit or not identical else []
    if failed:
        print(f"slower than {options.limit} times, or other bits: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        work()
    else:
        sys.exit(main())
