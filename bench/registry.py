"""Competitors: named ways to run an operation, ours and everyone else's, registered where they are defined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from .cases import Case
from .problem import Problem

Call = Callable[[], object]
WHOLE = float("inf")


class Unavailable(Exception):
    """A competitor cannot run a case; the message says why, for the report."""


@dataclass(frozen=True)
class Competitor:
    """prepare(problem) does whatever may be done once (indexes, compilation, contiguous copies) and returns the call
    that is timed, which returns the operation's result (see ours.py)."""

    name: str
    prepare: Callable[[Problem], Call]
    #: operation -> about how many G elements/s on two cores. Only chooses on how many queries it is measured;
    #: WHOLE measures all.
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

    def rows(self, case: Case, whole: float, part: float) -> int:
        if self.ours:
            return case.queries
        return case.rows_within(self.rates[case.operation] * 1e9, whole, part)


COMPETITORS: list[Competitor] = []


def competitor(name: str, rates: Mapping[str, float], **options):
    """Registers prepare(problem) for the operations named in `rates`."""

    def register(prepare):
        COMPETITORS.append(Competitor(name, prepare, rates, **options))
        return prepare

    return register


def competitors_of(case: Case, device: str = "cpu") -> list[Competitor]:
    return [row for row in COMPETITORS if case.operation in row.rates and row.device == device]
