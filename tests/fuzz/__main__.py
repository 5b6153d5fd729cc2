"""Fuzzing: calls every operator with random arguments, valid and damaged. Each call is right or raises our error.

    python tests/fuzz --seed 0 --count 1000

A call depends only on the seed and its number, so that --first repeats one that failed.
"""

from __future__ import annotations

import argparse
import os
import re
import traceback
from collections import Counter

import torch
from draw import Draw
from oracle import compare, expected, invalid_argument, may_raise, outputs, run

from dissim_kernels.backends import native

#: The messages of our errors, and of torch's errors for calls that it rejects before us.
MESSAGES = re.compile(
    r"^[\w.\[\] ]+: expected .+, got .+\. [A-Z]|cannot run this call: |Could not run '|expected (?:at most|a value)|"
    r"is missing value for argument|Expected a value of type|not implemented for|Overflow when unpacking|"
    r"The tensor has a non-zero number of elements, but its data is not allocated|could not be converted|"
    r"Cannot access data pointer|no fake impl or Meta kernel",
    re.DOTALL,
)


def call(draw: Draw) -> str:
    """Makes one call and returns its outcome. Raises AssertionError if it is wrong."""
    try:
        wrong = invalid_argument(draw)
    except Exception as error:
        raise AssertionError("the oracle failed") from error
    try:
        result = run(draw, draw.arguments)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        assert MESSAGES.search(str(error)), f"not one of our messages: {type(error).__name__}: {error}"
        assert wrong is not None or may_raise(draw), f"every argument is valid, but: {error}"
        return "raised"
    assert wrong is None, f"{wrong} is not valid, but the call returned"
    reference_results = expected(draw)
    if reference_results is None:
        return "ran"
    compare(draw, outputs(draw, result), reference_results)
    return "compared"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--progress", default=os.devnull, help="a file for the number of the running call")
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    with open(options.progress, "w") as progress:
        for number in range(options.first, options.first + options.count):
            os.pwrite(progress.fileno(), f"{number:12}\n".encode(), 0)
            torch.set_num_threads(1 if number % 8 else 2)
            draw = Draw(options.seed, number)
            try:
                outcome = call(draw)
            except Exception:
                traceback.print_exc()
                raise SystemExit(f"call {number} of seed {options.seed}:\n{draw.described()}") from None
            outcomes[outcome] += 1
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"{options.count} calls of {native.LIBRARY}: {counts}")


main()
