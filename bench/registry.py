"""Competitors: named implementations of an operation, ours included, registered where they are defined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from .cases import Case
from .problem import Problem

Call = Callable[[], object]
#: A rate for competitors that are always measured on all queries.
ALL_QUERIES = float("inf")


class Unavailable(Exception):
    """A competitor cannot run a case. The message is the reason for the report."""


@dataclass(frozen=True)
class Competitor:
    """prepare(problem) does the work that is not timed (indexes, compilation, contiguous copies).

    It returns the call that is timed, which returns the operation's result (see ours.py).
    """

    name: str
    prepare: Callable[[Problem], Call]
    #: Operation -> its rate on two cores, in Gelem/s, roughly. It only determines the number of queries measured.
    rates: Mapping[str, float]
    needs: tuple[str, ...] = ()  # module names of the optional group "bench"
    one_sign: bool = False
    ours: bool = False
    device: str = "cpu"

    def unsupported_reason(self) -> str | None:
        if self.device == "cuda" and not torch.cuda.is_available():
            return "this machine has no CUDA device"
        missing = [name for name in self.needs if find_spec(name) is None]
        return f"not installed: {', '.join(missing)}" if missing else None

    def queries(self, case: Case, full_s: float, sampled_s: float) -> int:
        """The number of queries to measure it on, see `Case.queries_within`."""
        if self.ours:
            return case.queries
        return case.queries_within(self.rates[case.operation] * 1e9, full_s, sampled_s)


COMPETITORS: list[Competitor] = []


def competitor(name: str, rates: Mapping[str, float], **options):
    """Registers prepare(problem) for the operations named in `rates`."""

    def register(prepare):
        COMPETITORS.append(Competitor(name, prepare, rates, **options))
        return prepare

    return register


def competitors_of(case: Case, device: str = "cpu") -> list[Competitor]:
    return [row for row in COMPETITORS if case.operation in row.rates and row.device == device]
