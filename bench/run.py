"""One case: each competitor passes the correctness check, its memory is measured, then all are timed in turns."""

from __future__ import annotations

import gc
import statistics
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .cases import Case
from .correctness import CorrectnessCheck
from .measure import interleave, peak_extra_bytes
from .peak import MIN_RESULT_BYTES, peak_calls
from .problem import Problem, make
from .registry import Competitor, Unavailable, competitors_of


@dataclass(frozen=True)
class TimeBudget:
    """How long to measure.

    rounds: the rounds that all competitors take part in; min_round_s: a round repeats a shorter call for that long.
    A competitor whose call would take longer than full_s is measured on as many queries as take about sampled_s.
    """

    rounds: int = 7
    min_round_s: float = 0.05
    full_s: float = 2.5
    sampled_s: float = 0.5


@dataclass
class Measurement:
    """One competitor on one case. `reason` says why there are no times."""

    name: str
    ours: bool
    one_sign: bool
    queries: int
    elements: int
    error: float | None = None
    memory: int | None = None
    reason: str | None = None
    wrong: bool = False
    seconds: list[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        return self.name + (" (one sign)" if self.one_sign else "")

    @property
    def rate(self) -> float:
        """Elements per second, by the median round."""
        return self.elements / statistics.median(self.seconds)


@dataclass
class CaseResult:
    """The measurements of a case and its peaks: "score", "tile", "block", "backward", "sad" in elements per second,
    "memory" and "pages" in bytes per second. Without peaks nothing was timed."""

    case: Case
    rows: list[Measurement]
    peaks: dict[str, float]

    @property
    def peak(self) -> tuple[str, float]:
        """What limits the case, "arithmetic" or "memory", and the elements per second it allows (a roofline)."""
        limits = self.case.limits(self.peaks)
        name = min(limits, key=limits.get)
        return name, limits[name]

    @property
    def time_parts(self) -> dict[str, float]:
        """The known parts of our call's time, in seconds.

        "arithmetic" at its peak; what the register "tile" adds to it and the "block" to that; the first-touch "page
        faults" of the result. "memory" is the time to move all bytes, which partly overlaps with the others.
        """
        case, peaks = self.case, self.peaks
        seconds = {name: case.elements * cost / peaks[name] for name, cost in case.costs.items()}
        parts = {"arithmetic": sum(seconds.values())}
        if "tile" in peaks:
            scored = case.elements * case.costs["score"]
            parts["tile"] = scored / peaks["tile"] - seconds["score"]
            parts["block"] = scored / peaks["block"] - scored / peaks["tile"]
        if "pages" in peaks:
            parts["page faults"] = sum(case.results) / peaks["pages"]
        return {**parts, "memory": case.bytes / peaks["memory"]}

    @property
    def best_peer(self) -> Measurement | None:
        return max((row for row in self.rows if row.seconds and not row.ours), key=lambda row: row.rate, default=None)


def run(case: Case, budget: TimeBudget, threads: int, isa: str, say: Callable[[str], None]) -> CaseResult:
    problem, checks, rows, calls = make(case), {}, [], {}
    for competitor in competitors_of(case):
        row, call = prepare_and_check(competitor, problem, budget, checks, say)
        rows.append(row)
        if call is not None:
            calls[row.name] = call
    if any(row.ours and row.wrong for row in rows):
        return CaseResult(case, rows, {})  # nothing is timed if our result is wrong
    if case.has_active_pairs:
        case = case.with_active(checks[case.queries, False].active)
    names = {*case.costs, "memory"}
    names |= {"tile", "block"} if case.uses_tiles else set()
    names |= {"pages"} if sum(case.results) >= MIN_RESULT_BYTES else set()
    with peak_calls(isa, threads, names, case) as peak_call:
        work = {name: call() for name, call in peak_call.items()}
        turns = {**calls, **{f"peak {name}": call for name, call in peak_call.items()}}
        samples = interleave(turns, budget.rounds, budget.min_round_s)
    for row in rows:
        row.seconds = samples.get(row.name, [])
    # The time of page faults varies many times over with the system's free memory, so its minimum is taken.
    typical = {name: min if name == "pages" else statistics.median for name in work}
    peaks = {name: work[name] / typical[name](samples[f"peak {name}"]) for name in work}
    return CaseResult(case, rows, peaks)


def prepare_and_check(
    competitor: Competitor, problem: Problem, budget: TimeBudget, checks: dict, say: Callable[[str], None],
    peak_memory: Callable[[Callable], int | None] = peak_extra_bytes,
) -> tuple[Measurement, Callable | None]:  # fmt: skip
    """Prepares a competitor's call, checks its result and measures its memory.

    checks: the correctness checks made so far, by the number of queries and one_sign; new ones are added. The call is
    None if it cannot be timed; then the measurement has the reason.
    """
    queries = competitor.queries(problem.case, budget.full_s, budget.sampled_s)
    problem = problem.first(queries)
    row = Measurement(competitor.name, competitor.ours, competitor.one_sign, queries, problem.case.elements)
    row.reason = competitor.unsupported_reason()
    if row.reason:
        return row, None
    if competitor.one_sign:
        problem = problem.one_sign()
    say(f"  {competitor.name}")
    try:
        call = competitor.prepare(problem)
        result = call()
    except Unavailable as reason:
        row.reason = str(reason)
        return row, None
    except torch.OutOfMemoryError:  # of a GPU: the caller may try fewer queries
        raise
    except Exception as error:  # a competitor's failure is reported in its row and ends nothing else
        first_line = str(error).split("\n")[0][:100]
        row.wrong, row.reason = competitor.ours, f"failed: {type(error).__name__}: {first_line}"
        if competitor.ours:
            say(traceback.format_exc())
        return row, None
    key = queries, competitor.one_sign
    if key not in checks:
        checks[key] = CorrectnessCheck(problem)
    row.error, passed = checks[key].verdict(result, competitor.ours)
    del result
    gc.collect()
    if not passed:
        row.wrong, row.reason = True, f"wrong by {row.error:.1e}: not timed"
        return row, None
    row.memory = peak_memory(call)
    return row, call
