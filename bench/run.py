"""One case: every competitor passes the gate, shows its memory, and takes part in the same interleaved rounds."""

from __future__ import annotations

import gc
import statistics
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .cases import Case
from .ceiling import LEAST_PAGES, ceilings
from .correctness import Gate
from .measure import interleave, peak_extra_bytes
from .problem import Problem, make
from .registry import Competitor, Unavailable, competitors_of


@dataclass(frozen=True)
class Effort:
    """How long to measure. Competitors that would take longer than `whole` seconds a call are measured on as many
    queries as take about `part` seconds."""

    rounds: int = 7
    least: float = 0.05
    whole: float = 2.5
    part: float = 0.5


@dataclass
class Row:
    """One competitor on one case; `reason` says why there are no times."""

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
    def rate(self) -> float:
        """Elements a second, by the median round."""
        return self.elements / statistics.median(self.seconds)


@dataclass
class Outcome:
    case: Case
    rows: list[Row]
    # "score", "tile", "block", "backward", "sad": elements a second; "memory", "pages": bytes a second
    ceilings: dict[str, float]
    active: float | None = None  # hinge: the share of pairs inside the margin, counted

    @property
    def limit(self) -> tuple[str, float]:
        """What binds, and how many elements a second it allows."""
        limits = self.case.limits(self.ceilings)
        name = min(limits, key=limits.get)
        return name, limits[name]

    @property
    def shares(self) -> dict[str, float]:
        """Seconds of our call that are known: what its arithmetic takes at the ceiling, what the register tile and
        then the block take beyond that, and the pages of the result; and what moving its bytes takes, some of it at
        the same time."""
        case, speeds = self.case, self.ceilings
        seconds = {name: case.elements * cost / speeds[name] for name, cost in case.steps.items()}
        shares = {"arithmetic": sum(seconds.values())}
        if "tile" in speeds:
            shares["tile"] = case.elements / speeds["tile"] - seconds["score"]
            shares["block"] = case.elements / speeds["block"] - case.elements / speeds["tile"]
        if "pages" in speeds:
            shares["pages"] = sum(case.results) / speeds["pages"]
        return {**shares, "memory": case.bytes / speeds["memory"]}

    @property
    def best_peer(self) -> Row | None:
        return max((row for row in self.rows if row.seconds and not row.ours), key=lambda row: row.rate, default=None)


def run(case: Case, effort: Effort, threads: int, isa: str, say: Callable[[str], None]) -> Outcome:
    problem, gates, rows, calls = make(case), {}, [], {}
    for competitor in competitors_of(case):
        row, call = admit(competitor, problem, effort, gates, say)
        rows.append(row)
        if call is not None:
            calls[row.name] = call
    if any(row.ours and row.wrong for row in rows):
        return Outcome(case, rows, {})  # no speed without a green gate, nobody's
    if case.operation.startswith("hinge"):
        active = gates[case.queries, False].active
        case = case.with_active(active)
    names = {*case.steps, "memory"}
    names |= {"tile", "block"} if case.by_tiles else set()
    names |= {"pages"} if sum(case.results) >= LEAST_PAGES else set()
    with ceilings(isa, threads, names, case) as limits:
        work = {name: call() for name, call in limits.items()}
        turns = {**calls, **{f"ceiling {name}": call for name, call in limits.items()}}
        samples = interleave(turns, effort.rounds, effort.least)
    for row in rows:
        row.seconds = samples.get(row.name, [])
    typical = {name: min if name == "pages" else statistics.median for name in limits}
    speeds = {name: work[name] / typical[name](samples[f"ceiling {name}"]) for name in limits}
    return Outcome(case, rows, speeds)


def admit(
    competitor: Competitor, problem: Problem, effort: Effort, gates: dict, say: Callable[[str], None],
    peak: Callable[[Callable], int | None] = peak_extra_bytes,
) -> tuple[Row, Callable | None]:  # fmt: skip
    """Prepares a competitor, checks the result of the call to be timed, and measures its memory."""
    queries = competitor.rows(problem.case, effort.whole, effort.part)
    part = problem.first(queries)
    row = Row(competitor.name, competitor.ours, competitor.one_sign, queries, part.case.elements)
    row.reason = competitor.unsupported_reason()
    if row.reason:
        return row, None
    if competitor.one_sign:
        part = part.one_sign()
    say(f"  {competitor.name}")
    try:
        call = competitor.prepare(part)
        result = call()
    except Unavailable as reason:
        row.reason = str(reason)
        return row, None
    except torch.OutOfMemoryError:  # of a GPU: the caller may try fewer queries
        raise
    except Exception as error:  # who breaks is a row that says so; if it is ours, the case and the run have failed
        row.wrong, row.reason = (
            competitor.ours,
            f"failed: {type(error).__name__}: {str(error).split(chr(10))[0][:100]}",
        )
        if competitor.ours:
            say(traceback.format_exc())
        return row, None
    key = queries, competitor.one_sign
    if key not in gates:
        gates[key] = Gate(part)
    row.error, passed = gates[key].check(result, competitor.ours)
    del result
    gc.collect()
    if not passed:
        row.wrong, row.reason = True, f"wrong by {row.error:.1e}: not timed"
        return row, None
    row.memory = peak(call)
    return row, call
