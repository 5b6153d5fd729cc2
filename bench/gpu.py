"""`python -m bench.gpu`: the GPU cases on a CUDA device; skips with a reason where there is none.

Every competitor passes the gate first, as on the CPU (gate.py). Times are of CUDA events around one call, in turns,
replayed as a CUDA graph where the call can be captured, after the cache was overwritten; so Python and launches cost
nobody anything that a graph saves. Memory is the allocator's peak. Ceilings are those of the data sheet
(gpu_model.py), not measured. Writes bench/results/gpu.{json,md}; `--quick` runs small sizes and writes to runs/bench.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from dissim_retrieval.atomic import atomic_write

from . import machine, report
from .cases import GPU_CASES, Case
from .gpu_model import GPUS, Gpu
from .peers import on_gpu  # noqa: F401  (competitors register themselves)
from .problem import make
from .registry import competitors_of
from .run import Effort, Outcome, admit

ROOT = Path(__file__).parents[1]
#: More than any cache of a GPU holds; written before each timed call.
FLUSH_BYTES = 512 << 20

HEAD = """# GPU benchmark

{device}; torch {torch}, CUDA {cuda}, driver {driver}; commit {commit}.

Measured {datetime} in {seconds} s with `{command}`: CUDA events around one call, the median of {rounds} rounds in
turns, with a cold cache, replayed as a CUDA graph where the call can be captured. One element is one step (query,
reference, dimension). The **ceiling** is the data sheet's (`bench/gpu_model.py`). The **error** is the largest
against float64 on a sample, in units of the sum of absolute terms. What is wrong is not timed. (E8) two distances for
two signs of weights; (one sign) knows only weights of one sign, and was given such (E11).
"""


def why_not() -> str | None:
    return None if torch.cuda.is_available() else "this machine has no CUDA device that torch can use"


def run(case: Case, rounds: int, say: Callable[[str], None]) -> Outcome:
    problem, gates, rows, calls = make(case), {}, [], {}
    for competitor in competitors_of(case, "cuda"):
        row, call = admit(competitor, problem, Effort(), gates, say, peak_extra_bytes)
        rows.append(row)
        if call is not None:
            calls[row.name] = replayed(call)
    if any(row.ours and row.wrong for row in rows):
        return Outcome(case, rows, {})
    if case.operation == "hinge_step":
        case = case.with_active(gates[case.queries, False].active)
    samples = interleave(calls, rounds)
    for row in rows:
        row.seconds = samples.get(row.name, [])
    return Outcome(case, rows, ceilings(device_model()))


def replayed(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph; the call itself where it cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call
    return graph.replay


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a call, one number a round; each round starts one further."""
    names, samples = list(calls), {name: [] for name in calls}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8)
    for turn in range(rounds + 1):  # the first warms up
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.fill_(turn)
            begin.record()
            calls[name]()
            end.record()
            torch.cuda.synchronize()
            if turn:
                samples[name].append(begin.elapsed_time(end) / 1e3)
    return samples


def peak_extra_bytes(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def device_model() -> Gpu | None:
    """The row of the data sheets whose name the device's has."""
    name = torch.cuda.get_device_name()
    return next((gpu for gpu in GPUS if gpu.name in name), None)


def ceilings(gpu: Gpu | None) -> dict[str, float]:
    """Elements a second at two (score) and three (backward) float32 instructions each, at a quarter of an integer's
    (sad), and bytes a second. A device without a row has none: infinite."""
    if gpu is None:
        return dict.fromkeys(("score", "backward", "sad", "memory"), float("inf"))
    instructions = gpu.float32_tflops * 1e12 / 2
    integers = instructions * gpu.rates["integer"] / gpu.rates["float"]
    arithmetic = {"score": instructions / 2, "backward": instructions / 3, "sad": integers * 4}
    return arithmetic | {"memory": gpu.terabytes * 1e12}


def facts(options: argparse.Namespace) -> dict[str, object]:
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": torch.cuda.driver_version() if hasattr(torch.cuda, "driver_version") else "unknown",
        "commit": machine.commit(),
        "quick": options.quick,
        "rounds": options.rounds,
        "command": "python -m bench.gpu" + (" --quick" if options.quick else ""),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes; writes to runs/bench")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if reason := why_not():
        print(f"bench.gpu: skipped, {reason}")
        return 0
    torch.set_default_device("cuda")
    begin, outcomes = time.monotonic(), []
    for case in GPU_CASES:
        if options.only in case.name and (case.quick or not options.quick):
            print(case.name, flush=True)
            case = case.shrunk(1 << 28) if options.quick else case
            outcomes.append(run(case, options.rounds, lambda text: print(text, flush=True)))
            print(report.table(outcomes[-1]), flush=True)
    known = facts(options) | {"seconds": round(time.monotonic() - begin)}
    known["datetime"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    partial = options.quick or options.only
    folder = ROOT / "runs" / "bench" if partial else ROOT / "bench" / "results"
    text = "\n".join([HEAD.format(**known), *(report.table(outcome) + "\n" for outcome in outcomes)])
    for name, content in (("gpu.json", report.to_json(outcomes, known)), ("gpu.md", text)):
        with atomic_write(folder / name) as file:
            file.write(content.encode())
    wrong = [f"{o.case.name}: {row.name}" for o in outcomes for row in o.rows if row.ours and row.wrong]
    if wrong:
        print("RED GATE: " + "; ".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
