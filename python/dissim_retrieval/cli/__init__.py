"""The command line `dissim`. Each command is a few calls of the library, in a module of its own.

A command returns what it found; `main` prints it, as text or with --json as one JSON value, and turns errors into one
line. Exit codes: 0 success; 1 an error, printed in one line; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tyro
from tqdm import tqdm

from .bench import bench
from .demo import demo
from .embed import embed
from .evaluate import evaluate
from .export import export
from .fit import fit
from .index import index
from .info import info
from .output import Output
from .search import search
from .serve import serve
from .train import train

COMMANDS = {
    command.__name__: command
    for command in (train, index, search, serve, evaluate, info, embed, fit, export, bench, demo)
}
DESCRIPTION = """Image retrieval with a learned pair score.

With --json, a command prints its result as JSON. With --debug, an error shows where it was raised. Progress bars are
shown on a terminal only."""


def main(arguments: list[str] | None = None) -> int:
    """Run `dissim` with the given arguments (default: those of the process) and return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    flags = {word for word in words if word in ("--json", "--debug")}
    words = [word for word in words if word not in flags]
    try:
        with _log_to_stderr():
            output: Output = tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="dissim", description=DESCRIPTION, args=words
            )
        if output.text:
            print(_as_json(output.record) if "--json" in flags else output.text, flush=True)
    except BrokenPipeError:  # the reader of the output, for example `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("dissim: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in flags:
            traceback.print_exc()
        print(f"dissim: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _as_json(record: Any) -> str:
    return json.dumps(record, indent=1, default=str, allow_nan=False)


def _one_line(error: Exception) -> str:
    """The message of an error on one line; of an error that the library does not expect, its type as well."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    message = " ".join(str(error).split("\n\n")[0].split())
    if isinstance(error, ValueError | TypeError | OSError | ImportError | FloatingPointError):
        return message
    return f"{type(error).__name__}: {message[:500]} (--debug shows where it was raised)"


class _StderrHandler(logging.Handler):
    """Writes a line to stderr, above a progress bar that is shown there."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """What the library logs, from level INFO on, goes to stderr."""
    logger, handler = logging.getLogger("dissim_retrieval"), _StderrHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
