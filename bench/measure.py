"""Time and memory of calls: interleaved rounds in one process, and the highest resident memory of one call."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path

#: A pause before each competitor, after which the OpenMP threads of the previous one no longer spin.
PAUSE_SECONDS = 0.02


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int, min_round_s: float) -> dict[str, list[float]]:
    """Seconds of each call, one number per round.

    Every round runs all calls, so that a slow period of the machine affects all of them. Each round starts one call
    later than the previous one. A call shorter than `min_round_s` is repeated for that long and the mean is taken; an
    untimed call precedes it.
    """
    names = list(calls)
    single = {name: _seconds(calls[name], 1) for name in names}
    repeats = {name: max(1, round(min_round_s / single[name])) for name in names}
    samples = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                time.sleep(PAUSE_SECONDS)
                if single[name] < min_round_s:
                    calls[name]()
                samples[name].append(_seconds(calls[name], repeats[name]))
    finally:
        gc.enable()
    return samples


def min_seconds(call: Callable[[], object]) -> float:
    """The minimum time of three calls after a warm-up, to choose between settings. It is not reported."""
    call()
    return min(_seconds(call, 1) for _ in range(3))


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def peak_extra_bytes(call: Callable[[], object]) -> int | None:
    """The rise of resident memory in one call, its result included. None if the system does not let a process reset
    its peak."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory of an earlier call would hide the rise
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except OSError:
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
