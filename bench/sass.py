"""The cost of every GPU kernel, counted in its machine code: `python -m bench.sass`. No GPU is needed.

Compiles each row of budgets.py for each architecture and prints a table. `--write` also writes it to
bench/results/sass.md, `--only TEXT` selects rows. Exit code 1 if a budget is exceeded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from . import files
from .budgets import ARCHITECTURES, BUDGETS, Budget
from .machine_code import Kernel, MainLoop, read
from .occupancy import Occupancy, occupancy
from .report import grid
from .toolchain import ROOT, unsupported_reason, version

HEAD = """# GPU kernels, counted

Counted in machine code by `python -m bench.sass`, not measured: {tools}.

**Slots** are the issue slots (instructions of a warp) of the main loop for one element, a term |q_d - r_d|, with all
loads, addresses and barriers. **Limit** is the maximum that `bench/budgets.py` allows. **Shared** is the static and
dynamic shared memory of a block. **Warps** is how many of the kernel's warps an SM holds, of at most 64, and
**limited by** the resource that limits them. No kernel spills registers or uses local memory.
"""


@dataclass(frozen=True)
class Count:
    """The counts for the kernel of a row of budgets.py."""

    budget: Budget
    kernel: Kernel
    loop: MainLoop
    dynamic_shared: int

    @property
    def occupancy(self) -> Occupancy:
        kernel = self.kernel
        return occupancy(kernel.arch, kernel.threads, kernel.registers, kernel.shared + self.dynamic_shared)

    @property
    def violations(self) -> list[str]:
        """All ways in which the kernel exceeds its budget."""
        kernel, loop, limit = self.kernel, self.loop, self.budget.limits[self.kernel.arch]
        found = {
            f"{loop.slots_per_element:.3f} issue slots per element, at most {limit}": loop.slots_per_element > limit,
            f"{kernel.spills} instructions that spill": kernel.spills > 0,
            f"{kernel.local} bytes of local memory": kernel.local > 0,
            f"{loop.side_loops} loops of unknown length within the main loop": loop.side_loops > 0,
            f"no block fits an SM, because of {self.occupancy.limiter}": self.occupancy.blocks == 0,
        }
        return [text for text, exceeded in found.items() if exceeded]


def count(budget: Budget, arch: int) -> Count:
    """Compiles the kernel and counts. Raises LookupError unless exactly one kernel has the name."""
    binary = budget.build(arch)
    found = [kernel for kernel in read(binary.cubin) if binary.part in kernel.name]
    if len(found) != 1:
        names = "\n  ".join(kernel.name for kernel in found or read(binary.cubin))
        raise LookupError(f"{budget.name}: {len(found)} kernels are named like {binary.part!r}:\n  {names}")
    loop = found[0].code.main_loop(budget.work, budget.per_element, budget.elements, budget.turns)
    return Count(budget, found[0], loop, binary.dynamic_shared)


def table(counts: Iterable[Count]) -> str:
    titles = (
        "kernel",
        "sm",
        "slots",
        "limit",
        "registers",
        "threads",
        "shared, KiB",
        "warps",
        "limited by",
        "main loop",
    )
    cells = [
        [
            count.budget.name,
            str(count.kernel.arch),
            f"{count.loop.slots_per_element:.3f}",
            f"{count.budget.limits[count.kernel.arch]:g}",
            str(count.kernel.registers),
            str(count.kernel.threads),
            f"{(count.kernel.shared + count.dynamic_shared) / 1024:.1f}",
            str(count.occupancy.warps),
            count.occupancy.limiter,
            ", ".join(f"{number:g} {opcode}" for opcode, number in count.loop.opcodes.most_common(4)),
        ]
        for count in counts
    ]
    return grid(titles, cells)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sass", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="only kernels whose name contains this")
    parser.add_argument("--write", action="store_true", help="write bench/results/sass.md")
    options = parser.parse_args()
    rows = [budget for budget in BUDGETS if options.only in budget.name]
    if missing := unsupported_reason(*{need for row in rows for need in row.needs}):
        sys.exit(f"bench.sass: {missing}")
    counts = [count(row, arch) for row in rows for arch in ARCHITECTURES]
    text = table(counts)
    print(text)
    if options.write:
        tools = f"{version()}, Triton {metadata.version('triton')}"
        files.replace(ROOT / "bench" / "results" / "sass.md", f"{HEAD.format(tools=tools)}\n{text}\n")
    violations = [f"{c.budget.name} for sm_{c.kernel.arch}: {text}" for c in counts for text in c.violations]
    print("\n".join(violations), file=sys.stderr)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
