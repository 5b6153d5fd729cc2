"""Commands with a time limit, whose output goes to a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


class TimedOut(Exception):
    """The command exceeded its time limit and was killed with its child processes."""


def execute(command: list[str], log: Path, seconds: float, settings: Mapping[str, str] | None = None) -> int:
    """Runs a command in the checkout, appends its output to `log` and returns its exit status. Raises TimedOut."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **(settings or {})},
        )  # fmt: skip
        try:
            return process.wait(max(0, seconds))
        except subprocess.TimeoutExpired:
            raise TimedOut(f"not done within {seconds:.0f} s ({log.name})") from None
        finally:  # child processes may be left even if the command ended
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def last_line(log: Path) -> str:
    """The last line that is not empty."""
    return next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")
