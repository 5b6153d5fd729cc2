"""`python -m bench.compare REVISION`: is this tree as fast as that commit, and are its results bit-identical?

Each tree runs in its own process, and the processes take turns, so that a slow period of the machine affects both.
Both run the cases of this tree's bench/, with the same inputs, by the public functions of their own dissim_kernels.
The table has the minimum of all rounds. Exit code 1 if an operation is slower than `--limit` allows or a result
differs. `--worker` runs the process of one tree.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: A turn repeats a shorter call for that long.
MIN_TURN_S = 0.05


def tree_of(revision: str) -> Path:
    """The folder of a built tree: `revision` itself if it is a folder, else the commit, built in build/compare."""
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
    """The process of one tree. It replies to each request with one line of JSON."""

    def __init__(self, tree: Path):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(tree)],
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def request(self, **message: object):
        assert self.process.stdin and self.process.stdout
        print(json.dumps(message), file=self.process.stdin, flush=True)
        reply = self.process.stdout.readline()
        if not reply:
            raise RuntimeError(f"bench.compare: the process of {self.process.args} ended, see its error above.")
        return json.loads(reply)


def import_trees(tree: Path) -> None:
    """Imports dissim_kernels from `tree`, and makes bench importable from this one."""
    sys.path[0] = str(tree)  # the folder of this file is not a place to import from
    import dissim_kernels

    assert Path(dissim_kernels.__file__).is_relative_to(tree), dissim_kernels.__file__
    sys.path[0] = str(ROOT)


def work(tree: Path) -> None:
    """The process of one tree: reads requests from stdin and prints the replies."""
    import_trees(tree)
    import torch

    import bench.ours  # noqa: F401  (registers itself)
    from bench.cases import CASES
    from bench.problem import make
    from bench.registry import competitors_of

    calls = {}

    def prepare(case: str) -> str | None:
        """Prepares the call of the case and returns a digest of its result, None if the tree lacks the operation."""
        chosen = next(row for row in CASES if row.name == case)
        calls["current"] = next(row for row in competitors_of(chosen) if row.ours).prepare(make(chosen))
        try:
            result = calls["current"]()
        except AttributeError as error:
            if not str(error).startswith("module 'dissim_kernels' has no attribute"):
                raise
            return None
        tensors = [result] if isinstance(result, torch.Tensor) else list(result)
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def seconds(repeats: int) -> float:
        call = calls["current"]
        call()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    actions = {"prepare": prepare, "seconds": seconds}
    for line in sys.stdin:
        message = json.loads(line)
        print(json.dumps(actions[message.pop("action")](**message)), flush=True)


def compare(case: str, trees: dict[str, Worker], rounds: int) -> tuple[dict[str, float], bool] | None:
    """The minimum seconds of each tree's call, and whether the results are bit-identical; None if one lacks it."""
    digests = {worker.request(action="prepare", case=case) for worker in trees.values()}
    if None in digests:
        return None
    single = min(worker.request(action="seconds", repeats=1) for worker in trees.values())
    repeats = max(1, round(MIN_TURN_S / single))
    minimum = dict.fromkeys(trees, float("inf"))
    for turn in range(rounds):
        for name in sorted(trees, reverse=turn % 2 == 1):
            minimum[name] = min(minimum[name], trees[name].request(action="seconds", repeats=repeats))
    return minimum, len(digests) == 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("revision", help="a commit, or the folder of a tree that is built")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=1.05, help="the largest allowed ratio of times, now / before")
    parser.add_argument("--only", default=[""], nargs="+", metavar="TEXT", help="only cases whose name contains one")
    options = parser.parse_args()
    from bench.cases import CASES

    cases = [case.name for case in CASES if any(text in case.name for text in options.only)]
    trees = {"before": Worker(tree_of(options.revision)), "now": Worker(ROOT)}
    failed = []
    print(f"{'case':36} {'before, ms':>12} {'now, ms':>12} {'ratio':>7}  results", flush=True)
    for case in cases:
        compared = compare(case, trees, options.rounds)
        if compared is None:
            print(f"{case:36} not in both trees", flush=True)
            continue
        minimum, identical = compared
        ratio = minimum["now"] / minimum["before"]
        results = "bit-identical" if identical else "DIFFERENT"
        times = f"{minimum['before'] * 1e3:12.3f} {minimum['now'] * 1e3:12.3f}"
        print(f"{case:36} {times} {ratio:7.3f}  {results}", flush=True)
        failed += [case] if ratio > options.limit or not identical else []
    if failed:
        print(f"slower than {options.limit} times, or different results: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(Path(sys.argv[2]))
    else:
        sys.exit(main())
