"""A kernel's machine code: its instructions, its loops and its use of an SM. No GPU is needed.

An **element** is one term |q_d - r_d|. An **issue slot** is one instruction of one warp. On every architecture here a
scheduler issues one instruction per clock. So the slots per element, with all loads, addresses and barriers of the
main loop, are the minimum number of clocks that a scheduler needs for 32 elements.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from .toolchain import demangle, run

#: Last instruction of an element's computation -> the elements of a thread that it completes. For a matrix product
#: these are the entries of the operand max(q, r) (E7), divided among the threads that hold it.
WORK = {
    **{"FFMA": 1, "FFMA2": 2, "DFMA": 1, "HFMA2": 2, "FADD": 1},
    **{"VABSDIFF4": 4, "HMMA.16816": 8, "HMMA.1688": 4, "HGMMA": 8},
}
INSTRUCTION_BYTES = 16
#: Bytes of each block's shared memory that are reserved for the system and counted by ptxas, from sm_90 on.
SYSTEM_SHARED = 1024


@dataclass(frozen=True)
class Instruction:
    opcode: str
    predicate: str
    operands: str

    @property
    def target(self) -> int | None:
        """The target of a jump within the kernel. Some CALLs are such jumps; others name a subroutine."""
        jumps = self.opcode.split(".")[0] in ("BRA", "JMP", "CALL")
        address = re.search(r"(0x[0-9a-f]+)$", self.operands)
        return int(address.group(1), 16) // INSTRUCTION_BYTES if jumps and address else None

    @property
    def ends(self) -> bool:
        """Whether no thread continues with the next instruction."""
        conditional = self.predicate not in ("", "@PT", "@UPT") or re.match(r"!?U?P", self.operands)
        jumps = self.opcode.split(".")[0] in ("BRA", "JMP", "CALL") and self.target is not None
        return (jumps or self.opcode.split(".")[0] in ("BRX", "EXIT", "RET")) and not conditional

    def work(self, names: tuple[str, ...]) -> int:
        """The elements completed, if this is one of the named instructions of WORK and no move of a constant."""
        if ",-RZ,RZ," in self.operands:
            return 0
        return next((WORK[name] for name in names if f"{self.opcode}.".startswith(f"{name}.")), 0)


@dataclass(frozen=True)
class Loop:
    """A natural loop: the positions of its instructions."""

    head: int
    body: frozenset[int]


@dataclass(frozen=True)
class MainLoop:
    """The loop of a kernel in which elements are counted.

    elements: of one thread in one turn; opcodes: how often each instruction runs in a turn; side_loops: other loops
    inside it with an unknown number of turns, counted as one turn each.
    """

    elements: float
    opcodes: Counter[str]
    side_loops: int

    @property
    def slots(self) -> float:
        return self.opcodes.total()

    @property
    def slots_per_element(self) -> float:
        return self.slots / self.elements


class Code:
    """The instructions of one kernel and its loops."""

    def __init__(self, instructions: list[Instruction]) -> None:
        self.instructions = instructions

    @cached_property
    def loops(self) -> list[Loop]:
        """The loops; those with the same head are merged."""
        bodies: dict[int, frozenset[int]] = {}
        for end, head in self._back_edges():
            bodies[head] = bodies.get(head, frozenset()) | self._body(end, head)
        return [Loop(head, body) for head, body in bodies.items()]

    @cached_property
    def _successors(self) -> list[list[int]]:
        """The positions that may follow each position."""
        successors = []
        for place, instruction in enumerate(self.instructions):
            following = [] if instruction.ends or place + 1 == len(self.instructions) else [place + 1]
            successors.append(following + ([] if instruction.target is None else [instruction.target]))
        return successors

    @cached_property
    def _predecessors(self) -> list[list[int]]:
        predecessors: list[list[int]] = [[] for _ in self.instructions]
        for place, following in enumerate(self._successors):
            for other in following:
                predecessors[other].append(place)
        return predecessors

    def _back_edges(self) -> Iterator[tuple[int, int]]:
        """The edges of a depth-first search to a position on its current path.

        They close the loops, in whatever order the compiler put their blocks.
        """
        path, entered, on_path = [(0, iter(self._successors[0]))], {0}, {0}
        while path:
            place, following = path[-1]
            step = next(following, None)
            if step is None:
                path.pop()
                on_path.discard(place)
            elif step in on_path:
                yield place, step
            elif step not in entered:
                entered.add(step)
                on_path.add(step)
                path.append((step, iter(self._successors[step])))

    def _body(self, end: int, head: int) -> frozenset[int]:
        body, waiting = {head}, [end]
        while waiting:
            place = waiting.pop()
            if place not in body:
                body.add(place)
                waiting.extend(self._predecessors[place])
        return frozenset(body)

    def main_loop(
        self, work: tuple[str, ...], per_element: float = 1, elements: tuple[int, ...] = (), turns: int = 0
    ) -> MainLoop:
        """The innermost loop with most of the instructions `work`, or a loop around it.

        per_element: the instructions of WORK that an element takes, 2 for a backward of two fused multiply-adds.
        elements: the elements of a thread in one turn of the main loop. If the innermost loop completes fewer, it is
        nested in the main loop and runs the number of turns that this takes. Several numbers are the levels of the
        nest from the inside.
        turns: the turns of every other loop in the main loop, or 0 if unknown.
        """
        completed = {place: ins.work(work) for place, ins in enumerate(self.instructions) if ins.work(work)}
        nest = [loop for loop in self.loops if completed.keys() & loop.body]
        if not nest:
            raise LookupError(f"no loop has an instruction {' or '.join(work)}")
        innermost = [loop for loop in nest if not any(other.body < loop.body for other in nest)]
        loop = max(innermost, key=lambda loop: sum(completed.get(place, 0) for place in loop.body))
        turn = sum(completed.get(place, 0) for place in loop.body) / per_element
        opcodes, side = self._straight(loop, None, turns)
        for wanted in elements:
            if wanted > turn:
                if wanted % turn:
                    raise LookupError(f"a turn of the main loop has {wanted} elements, no multiple of {turn:g}")
                outer = [other for other in nest if loop.body < other.body]
                if not outer:
                    raise LookupError(f"no loop around the innermost, whose turn has {turn:g} elements, not {wanted}")
                around = min(outer, key=lambda other: len(other.body))
                more, sides = self._straight(around, loop, turns)
                for name, number in opcodes.items():
                    more[name] += number * wanted / turn
                opcodes, turn, loop, side = more, wanted, around, side + sides
            elif wanted < turn:
                raise LookupError(f"a turn of the loop has {turn:g} elements, not {wanted}")
        return MainLoop(turn, opcodes, side)

    def _straight(self, loop: Loop, inner: Loop | None, turns: int) -> tuple[Counter[str], int]:
        """The instructions of the loop without those of `inner`, and its number of other loops of unknown length."""
        own = loop.body - (inner.body if inner else frozenset())
        others = [other for other in self.loops if other.body <= own and other.body != loop.body]
        opcodes = Counter(self.instructions[place].opcode.split(".")[0] for place in own)
        for place in (place for other in others if turns for place in other.body):
            opcodes[self.instructions[place].opcode.split(".")[0]] += turns - 1
        return opcodes, 0 if turns else len(others)


@dataclass(frozen=True)
class Kernel:
    """One kernel of a cubin. shared: the bytes of static shared memory."""

    arch: int
    symbol: str
    name: str
    registers: int
    local: int  # bytes of stack and local memory of a thread
    shared: int
    threads: int  # the maximum of a block, by its launch bounds
    code: Code

    @property
    def spills(self) -> int:
        """Instructions that read or write local memory."""
        return sum(ins.opcode.split(".")[0] in ("LDL", "STL") for ins in self.code.instructions)


@lru_cache(maxsize=3)  # rows of budgets.py that share a source follow each other, each for three architectures
def read(cubin: Path) -> list[Kernel]:
    """All kernels of a cubin, from nvcc or Triton, whose name has the digest of its content."""
    head, functions = json.loads(run("nvdisasm", "-json", cubin))
    arch = head["SM"]["version"]["major"] * 10 + head["SM"]["version"]["minor"]
    usage, threads = _usage(cubin), _threads(cubin)
    kernels = [function for function in functions if function["function-name"] in usage]
    names = demangle([kernel["function-name"] for kernel in kernels])
    return [
        Kernel(
            arch, symbol := kernel["function-name"], name, usage[symbol]["REG"],
            usage[symbol]["STACK"] + usage[symbol]["LOCAL"],
            usage[symbol]["SHARED"] - (SYSTEM_SHARED if arch >= 90 and usage[symbol]["SHARED"] else 0),
            threads.get(symbol, 1024), Code(_instructions(kernel)),
        )
        for kernel, name in zip(kernels, names, strict=True)
    ]  # fmt: skip


def _instructions(function: dict) -> list[Instruction]:
    assert function["start"] == 0, "a kernel begins its section"
    rows = function["sass-instructions"]
    return [Instruction(row["opcode"], row.get("predicate", ""), row.get("operands", "")) for row in rows]


def _usage(cubin: Path) -> dict[str, dict[str, int]]:
    found = re.findall(r"Function (\S+):\n\s*(.*)", run("cuobjdump", "-res-usage", cubin))
    return {name: {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", counts)} for name, counts in found}


def _threads(cubin: Path) -> dict[str, int]:
    """The launch bounds, or the number of threads that the kernel requires."""
    bounds = {}
    for section in re.split(r"^//-+ \.nv\.info\.", run("nvdisasm", cubin), flags=re.M)[1:]:
        found = re.search(r"EIATTR_(?:MAX_THREADS|REQNTID)\b(.*?)\n\n", section, re.S)
        if found:
            x, y, z = (int(word, 16) for word in re.findall(r"\.word\s+(0x[0-9a-f]+)", found.group(1)))
            bounds[section.split()[0]] = x * y * z
    return bounds
