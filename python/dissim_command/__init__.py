"""The program `dissim`. A package of its own, because the import of `dissim_retrieval` takes seconds.

Ctrl-C in these seconds prints one line. An exception would not do: some packages catch it while they are imported.
"""

import os
import signal
from typing import NoReturn


def main() -> int:
    """Run `dissim` with the arguments of the process and return its exit code."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as for a command that a script runs in the background
        signal.signal(signal.SIGINT, _interrupted)
    from dissim_retrieval.cli import main as run

    signal.signal(signal.SIGINT, before)
    return run()


def _interrupted(*signal_and_frame: object) -> NoReturn:
    os.write(2, b"dissim: interrupted\n")
    os._exit(130)
