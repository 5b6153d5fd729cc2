"""Time and memory of calls: interleaved rounds in one process, and the highest resident memory of one call."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path

#: Between two competitors: their OpenMP threads, which spin for a while, are asleep by then.
SETTLE_SECONDS = 0.02


def interleave(
    calls: Mapping[str, Callable[[], object]], rounds: int, least_seconds: float
) -> dict[str, list[float]]:
    """Seconds of a call, one number a round. Every round runs all the calls in turn, starting one further each time,
    so that a slow minute of the machine hits all alike. A call shorter than `least_seconds` is repeated until they
    are full and the mean taken. Each turn starts with an untimed call, unless the call is long. All are warm."""
    names = list(calls)
    single = {name: _seconds(calls[name], 1) for name in names}
    repeats = {name: max(1, round(least_seconds / single[name])) for name in names}
    samples = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                time.sleep(SETTLE_SECONDS)
                if single[name] < least_seconds:
                    calls[name]()
                samples[name].append(_seconds(calls[name], repeats[name]))
    finally:
        gc.enable()
    return samples


def quickest(call: Callable[[], object], times: int = 3) -> float:
    """Seconds of the best of a few warm calls: to choose between settings, not to report."""
    call()
    return min(_seconds(call, 1) for _ in range(times))


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def peak_extra_bytes(call: Callable[[], object]) -> int | None:
    """How far one call's resident memory rises above what was resident before, its result included: whatever
    allocated it. None where the system cannot tell (it is Linux that can reset the mark)."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else freed memory of an earlier call hides this one's
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except (OSError, AttributeError):
        call()
        return None
    result = call()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
