"""One case on a GPU: `python -m bench.gpu CASE FOLDER` adds a line to FOLDER/gpu.jsonl. `make gpu` runs them all.

Each case has a process of its own (gpu_session.py), because a kernel that reads outside its memory, or never ends,
takes the process with it. FOLDER/trying holds the name of the competitor that is tried; `--without NAME` leaves one
out that ended an earlier try.

Every competitor passes the correctness check first, as on the CPU (correctness.py). A call that is replayed as a CUDA
graph passes it once more, by what the replay wrote. CUDA events time one call after the
cache was overwritten, the competitors in turns. One that needs more memory than there is gets a sixteenth of the
queries, and again. Memory is the allocator's peak.
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
from .correctness import Gate
from .data_sheets import data_sheet
from .gpu_session import OURS_FAILED
from .peers import on_gpu  # noqa: F401  (competitors register themselves)
from .problem import make
from .registry import Call, Competitor, competitors_of
from .run import Effort, Row, admit

#: Rounds of everyone, but no more of a slow call than fill this many seconds, and at least three.
ROUNDS, SECONDS = 15, 1.0
#: More than any cache of a GPU holds; written before each timed call.
FLUSH_BYTES = 512 << 20


def measure(case: Case, without: list[str], trying: Callable[[str], object]) -> dict[str, object]:
    """The case's line: its sizes, and a row for every competitor."""
    problem, gates, rows, calls, replays = make(case, "cuda"), {}, [], {}, set()
    for competitor in competitors_of(case, "cuda"):
        if competitor.name in without:
            reason = "it ended the process, or did not end: see the log"
            rows.append(Row(competitor.name, competitor.ours, False, case.queries, case.elements, reason=reason))
            continue
        trying(competitor.name)
        row, call = admit_fewer(competitor, problem, gates)
        rows.append(row)
        if call is None:
            continue
        replay, result = captured(call)
        if replay is not None:
            replay()
            row.error, passed = gates[row.queries, row.one_sign].check(result, row.ours)
            if not passed:
                row.wrong, row.reason = True, f"wrong by {row.error:.1e} when replayed as a CUDA graph: not timed"
                continue
            replays.add(row.name)
        calls[row.name] = replay or call
        torch.cuda.synchronize()  # a kernel that failed ends the process here, while its name is known
    trying("its rounds")
    samples = interleave(calls)
    if case.operation == "hinge_step" and (case.queries, False) in gates:
        case = case.with_active(gates[case.queries, False].active)
    for row in rows:
        row.seconds = samples.get(row.name, [])
    sheet = data_sheet(torch.cuda.get_device_name())
    shown = [
        dataclasses.asdict(row)
        | {"replayed": row.name in replays, "of_peak": of_peak(case, row, sheet.peaks) if sheet else None}
        for row in rows
    ]
    return {"case": dataclasses.asdict(case), "device": torch.cuda.get_device_name(), "rows": shown}


def admit_fewer(competitor: Competitor, problem, gates: dict[object, Gate]) -> tuple[Row, Call | None]:
    """`admit` on all queries or, where memory does not suffice, on a sixteenth of them, and again."""
    case = problem.case
    queries = [case.queries // 16**n or 1 for n in range(3)]
    for count in dict.fromkeys(queries):
        try:
            return admit(competitor, problem.first(count), Effort(), gates, say, peak_extra_bytes)
        except torch.OutOfMemoryError:
            pass  # and only then, without the exception, are its tensors freed
        torch.cuda.empty_cache()
    reason = f"out of memory, of {count} queries too"
    return Row(competitor.name, competitor.ours, competitor.one_sign, count, case.elements, reason=reason), None


def captured(call: Call) -> tuple[Callable[[], None] | None, object]:
    """A function that replays the call as a CUDA graph, and what it writes to; None where it cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = call()
    except Exception as error:
        say(f"    not captured: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        torch.cuda.synchronize()
        return None, None
    return graph.replay, result


def interleave(calls: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of a call, one number a round; each round starts one further. Slow calls have fewer rounds."""
    names, samples = list(calls), {name: [] for name in calls}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    rounds = {name: max(3, min(ROUNDS, int(SECONDS / seconds(calls[name], flush)))) for name in names}
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


def of_peak(case: Case, row: Row, peaks: Mapping[str, float]) -> float | None:
    """The seconds that the data sheet's peaks would take, over those measured; None of a row without times."""
    if not row.seconds:
        return None
    arithmetic = sum(cost / peaks[step] for step, cost in case.steps.items() if step in peaks)
    least = max(arithmetic, case.bytes / case.elements / peaks["memory"])
    return least * row.rate


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
