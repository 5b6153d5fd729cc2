"""Calls every operator with random arguments, whole and damaged: each gives the right numbers or an error in words.

    python tests/fuzz --seed 0 --count 1000

A call is drawn from the seed and its number alone; --first repeats one that failed.
"""

from __future__ import annotations

import argparse
import os
import re
import traceback
from collections import Counter

import torch
from draw import Draw
from oracle import compare, expected, misfit, outputs, run

from dissim_kernels.backends import native

#: What an error of ours looks like, and what torch says of calls that never reach us.
WORDS = re.compile(
    r"^[\w.\[\] ]+: expected .+, got .+\. [A-Z]|cannot run this call: |Could not run '|expected (?:at most|a value)|"
    r"is missing value for argument|Expected a value of type|not implemented for|Overflow when unpacking|"
    r"The tensor has a non-zero number of elements, but its data is not allocated|could not be converted|"
    r"Cannot access data pointer|no fake impl or Meta kernel",
    re.DOTALL,
)


def call(draw: Draw) -> str:
    """One call, whose outcome is told; raises AssertionError where it is wrong."""
    try:
        wrong = misfit(draw)
    except Exception as error:
        raise AssertionError("the oracle failed") from error
    try:
        result = run(draw, draw.arguments)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        assert WORDS.search(str(error)), f"no words: {type(error).__name__}: {error}"
        assert wrong is not None, f"every argument fits, but: {error}"
        return "refused"
    assert wrong is None, f"{wrong} does not fit, but the call returned"
    wanted = expected(draw)
    if wanted is None:
        return "ran"
    compare(draw, outputs(draw, result), wanted)
    return "compared"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--progress", default=os.devnull, help="a file that holds the number of the running call")
    options = parser.parse_args()
    told: Counter[str] = Counter()
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
            told[outcome] += 1
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(told.items()))
    print(f"{options.count} calls of {native.LIBRARY}: {outcomes}")


main()
