"""One case on a GPU: `python -m bench.gpu CASE FOLDER` adds a line to FOLDER/gpu.jsonl. `make gpu` runs all cases.

gpu_session.py runs each case in its own process, because a kernel that accesses memory out of bounds or never ends
takes the process with it. FOLDER/trying holds the name of the running competitor, and `--without NAME` skips one that
ended an earlier process.

Every competitor passes the correctness check first, as on the CPU (correctness.py). The result of a replayed CUDA
graph is checked again. CUDA events time one call after the cache was overwritten, the competitors in turns. A
competitor without enough memory gets a sixteenth of the queries, twice if needed. Memory is the allocator's peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from .cases import GPU_CASES, Case
from .correctness import CorrectnessCheck
from .data_sheets import data_sheet
from .gpu_session import OURS_FAILED
from .peers import on_gpu  # noqa: F401  (competitors register themselves)
from .problem import make
from .registry import Call, Competitor, competitors_of
from .run import Measurement, TimeBudget, prepare_and_check

#: The rounds of each competitor. A slow call has fewer, as many as fit in SECONDS but at least MIN_ROUNDS.
ROUNDS, SECONDS, MIN_ROUNDS = 15, 1.0, 3
#: More than any cache of a GPU holds; written before each timed call.
FLUSH_BYTES = 512 << 20
#: The name of the phase after all competitors were tried, in FOLDER/trying.
ROUNDS_PHASE = "its rounds"


def measure(case: Case, without: list[str], trying: Callable[[str], object]) -> dict[str, object]:
    """The line of the case for gpu.jsonl: its sizes, and a row for every competitor."""
    problem, checks, rows, calls, replays = make(case, "cuda"), {}, [], {}, set()
    for competitor in competitors_of(case, "cuda"):
        if competitor.name in without:
            reason = "it ended the process, or did not end: see the log"
            rows.append(
                Measurement(competitor.name, competitor.ours, False, case.queries, case.elements, reason=reason)
            )
            continue
        trying(competitor.name)
        row, call = prepare_within_memory(competitor, problem, checks)
        rows.append(row)
        if call is None:
            continue
        replay, result = try_capture(call)
        if replay is not None:
            replay()
            row.error, passed = checks[row.queries, row.one_sign].verdict(result, row.ours)
            if not passed:
                row.wrong, row.reason = True, f"wrong by {row.error:.1e} when replayed as a CUDA graph: not timed"
                continue
            replays.add(row.name)
        calls[row.name] = replay or call
        torch.cuda.synchronize()  # a failed kernel ends the process here, while `trying` has its name
    trying(ROUNDS_PHASE)
    samples = interleave(calls)
    if case.operation == "hinge_step" and (case.queries, False) in checks:
        case = case.with_active(checks[case.queries, False].active)
    for row in rows:
        row.seconds = samples.get(row.name, [])
    sheet = data_sheet(torch.cuda.get_device_name())
    fields = [
        dataclasses.asdict(row)
        | {"replayed": row.name in replays, "of_peak": of_peak(case, row, sheet.peaks) if sheet else None}
        for row in rows
    ]
    return {"case": dataclasses.asdict(case), "device": torch.cuda.get_device_name(), "rows": fields}


def prepare_within_memory(
    competitor: Competitor, problem, checks: dict[object, CorrectnessCheck]
) -> tuple[Measurement, Call | None]:
    """`prepare_and_check` on all queries or, if memory does not suffice, on a sixteenth of them, and again."""
    case = problem.case
    queries = [case.queries // 16**n or 1 for n in range(3)]
    for count in dict.fromkeys(queries):
        try:
            return prepare_and_check(competitor, problem.first(count), TimeBudget(), checks, say, peak_extra_bytes)
        except torch.OutOfMemoryError:
            pass  # the tensors are freed only after the exception, so the cache is emptied below
        torch.cuda.empty_cache()
    reason = f"out of memory even for {count} queries"
    row = Measurement(competitor.name, competitor.ours, competitor.one_sign, count, case.elements, reason=reason)
    return row, None


def capture(call: Call) -> tuple[torch.cuda.CUDAGraph, object]:
    """A CUDA graph of the call, and the result that its replays write to."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


def try_capture(call: Call) -> tuple[Callable[[], None] | None, object]:
    """As `capture`, but returns the function that replays the graph, or None if the call cannot be captured."""
    try:
        graph, result = capture(call)
    except Exception as error:
        first_line = str(error).split("\n")[0]
        say(f"    not captured: {type(error).__name__}: {first_line}")
        torch.cuda.synchronize()
        return None, None
    return graph.replay, result


def interleave(calls: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each call, one number per round. Each round starts one call later than the previous one."""
    names, samples = list(calls), {name: [] for name in calls}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    rounds = {name: max(MIN_ROUNDS, min(ROUNDS, int(SECONDS / seconds(calls[name], flush)))) for name in names}
    for turn in range(ROUNDS):
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            if turn < rounds[name]:
                samples[name].append(seconds(calls[name], flush))
    return samples


def seconds(call: Callable[[], object], flush: torch.Tensor) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush.zero_()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def peak_extra_bytes(call: Call) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def of_peak(case: Case, row: Measurement, peaks: Mapping[str, float]) -> float | None:
    """The rate as a fraction of what the data sheet's peaks allow (a roofline), or None for a row without times."""
    if not row.seconds:
        return None
    arithmetic = sum(cost / peaks[name] for name, cost in case.costs.items() if name in peaks)
    seconds_per_element = max(arithmetic, case.bytes / case.elements / peaks["memory"])
    return seconds_per_element * row.rate


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("case", choices=[case.name for case in GPU_CASES])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--without", action="append", default=[], metavar="NAME")
    options = parser.parse_args()
    begin = time.monotonic()
    case = next(case for case in GPU_CASES if case.name == options.case)
    line = measure(case, options.without, (options.folder / "trying").write_text)
    line["seconds"] = round(time.monotonic() - begin, 1)
    with (options.folder / "gpu.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return OURS_FAILED if any(row["ours"] and not row["seconds"] for row in line["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
