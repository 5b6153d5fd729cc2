"""A kernel's machine code: its instructions, its loops, and what it takes of an SM. No GPU is needed.

An **element** is one step (query, reference, dimension). An **issue slot** is one instruction of one warp, whatever
it is: on every architecture here a scheduler issues one a clock. So slots per element is the floor of the clocks that
a scheduler spends on 32 elements, with all that the main loop adds in loads, addresses and barriers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .toolchain import demangle, run

#: Elements that one instruction of a thread finishes, where it is the last on an element's way. Of a matrix product
#: they are the entries of the operand that holds max(q, r) (E7), shared among the threads that hold it.
WORK = {
    **{"FFMA": 1, "FFMA2": 2, "DFMA": 1, "HFMA2": 2, "FADD": 1},
    **{"VABSDIFF4": 4, "HMMA.16816": 8, "HMMA.1688": 4, "HGMMA": 8},
}
INSTRUCTION_BYTES = 16
#: Bytes of shared memory of every block that ptxas counts and the system takes, from sm_90 on.
SYSTEM_SHARED = 1024


@dataclass(frozen=True)
class Instruction:
    opcode: str
    predicate: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a jump within the kernel goes to. Some CALLs are such jumps; those of subroutines name them."""
        jumps = self.opcode.split(".")[0] in ("BRA", "JMP", "CALL")
        address = re.search(r"(0x[0-9a-f]+)$", self.operands)
        return int(address.group(1), 16) // INSTRUCTION_BYTES if jumps and address else None

    @property
    def ends(self) -> bool:
        """Whether no thread goes on to the next instruction."""
        conditional = self.predicate not in ("", "@PT", "@UPT") or re.match(r"!?U?P", self.operands)
        jumps = self.opcode.split(".")[0] in ("BRA", "JMP", "CALL") and self.target is not None
        return (jumps or self.opcode.split(".")[0] in ("BRX", "EXIT", "RET")) and not conditional

    def work(self, names: tuple[str, ...]) -> int:
        """Elements finished, if this is one of the named instructions of WORK and no move of a constant."""
        if ",-RZ,RZ," in self.operands:
            return 0
        return next((WORK[name] for name in names if f"{self.opcode}.".startswith(f"{name}.")), 0)


@dataclass(frozen=True)
class Loop:
    """A natural loop: the places of its instructions."""

    head: int
    body: frozenset[int]


@dataclass(frozen=True)
class MainLoop:
    """The loop of a kernel in which elements are counted. elements: of one thread and turn; opcodes: how often each
    instruction runs in a turn; side_loops: loops beside the main one whose turns the machine code does not tell,
    counted as one each."""

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
        """Loops that share a head are one."""
        bodies: dict[int, frozenset[int]] = {}
        for end, head in self._edges_back():
            bodies[head] = bodies.get(head, frozenset()) | self._body(end, head)
        return [Loop(head, body) for head, body in bodies.items()]

    @cached_property
    def _after(self) -> list[list[int]]:
        """The places that each place may be followed by."""
        after = []
        for place, instruction in enumerate(self.instructions):
            following = [] if instruction.ends or place + 1 == len(self.instructions) else [place + 1]
            after.append(following + ([] if instruction.target is None else [instruction.target]))
        return after

    @cached_property
    def _before(self) -> list[list[int]]:
        before: list[list[int]] = [[] for _ in self.instructions]
        for place, following in enumerate(self._after):
            for other in following:
                before[other].append(place)
        return before

    def _edges_back(self) -> Iterator[tuple[int, int]]:
        """Steps to a place that is still on the path of a walk in depth from the entry: what closes loops, wherever
        the compiler put their blocks."""
        path, entered, on_path = [(0, iter(self._after[0]))], {0}, {0}
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
                path.append((step, iter(self._after[step])))

    def _body(self, end: int, head: int) -> frozenset[int]:
        body, waiting = {head}, [end]
        while waiting:
            place = waiting.pop()
            if place not in body:
                body.add(place)
                waiting.extend(self._before[place])
        return frozenset(body)

    def main_loop(
        self, work: tuple[str, ...], per_element: float = 1, elements: tuple[int, ...] = (), turns: int = 0
    ) -> MainLoop:
        """The innermost loop with the most of the instructions `work`, or one around it.

        per_element: how many results of WORK make an element (2 for a backward of two fused multiply-adds each).
        elements: of a thread in one turn of the main loop. Where the innermost loop finishes fewer, it is nested in
        the main loop and runs as many turns as that takes; several numbers are several levels, from within.
        turns: of every other loop within the main loop; 0 if that is not known.
        """
        finished = {place: ins.work(work) for place, ins in enumerate(self.instructions) if ins.work(work)}
        nest = [loop for loop in self.loops if finished.keys() & loop.body]
        if not nest:
            raise LookupError(f"no loop has an instruction {' or '.join(work)}")
        innermost = [loop for loop in nest if not any(other.body < loop.body for other in nest)]
        loop = max(innermost, key=lambda loop: sum(finished.get(place, 0) for place in loop.body))
        turn = sum(finished.get(place, 0) for place in loop.body) / per_element
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
        """Instructions of the loop without those of `inner`, and how many other loops of unknown length are there."""
        own = loop.body - (inner.body if inner else frozenset())
        others = [other for other in self.loops if other.body <= own and other.body != loop.body]
        opcodes = Counter(self.instructions[place].opcode.split(".")[0] for place in own)
        for place in (place for other in others if turns for place in other.body):
            opcodes[self.instructions[place].opcode.split(".")[0]] += turns - 1
        return opcodes, 0 if turns else len(others)


@dataclass(frozen=True)
class Kernel:
    """One kernel of a cubin. shared: bytes that its source declares; dynamic shared memory is the launch's."""

    arch: int
    symbol: str
    name: str
    registers: int
    local: int  # bytes of stack and local memory of a thread
    shared: int
    threads: int  # the most of a block, by its launch bounds
    code: Code

    @property
    def spills(self) -> int:
        """Instructions that read or write local memory."""
        return sum(ins.opcode.split(".")[0] in ("LDL", "STL") for ins in self.code.instructions)


def read(cubin: Path) -> list[Kernel]:
    """Every kernel of a cubin, of nvcc or of Triton."""
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
    """Launch bounds, or what the kernel requires."""
    bounds = {}
    for section in re.split(r"^//-+ \.nv\.info\.", run("nvdisasm", cubin), flags=re.M)[1:]:
        found = re.search(r"EIATTR_(?:MAX_THREADS|REQNTID)\b(.*?)\n\n", section, re.S)
        if found:
            x, y, z = (int(word, 16) for word in re.findall(r"\.word\s+(0x[0-9a-f]+)", found.group(1)))
            bounds[section.split()[0]] = x * y * z
    return bounds
