"""The ceilings of peak.cpp: compiled at first use with the library's own flags, run on all threads.

They are calls like any competitor's and take part in a case's rounds, so a ratio to the ceiling is a ratio of the
same minute.
"""

from __future__ import annotations

import ast
import ctypes
import os
import platform
import shlex
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from .cases import Case
from .toolchain import compiler

ROOT = Path(__file__).parents[1]
SOURCES = Path(__file__).with_name("peak.cpp"), ROOT / "csrc" / "cpu" / "memory.cpp"
ARITHMETIC = ("score", "tile", "block", "backward", "sad")
#: Elements of one arithmetic call on a thread: some 50 ms.
ELEMENTS = 1 << 31
TASKS = 16
#: Bytes that one memory call reads: far more than any cache holds.
MEMORY_BYTES = 512 << 20
#: Results of fewer bytes come from memory that was freed before, and the pool's own 0.06 ms would show.
LEAST_PAGES = 8 << 20


def flags(isa: str) -> list[str]:
    """The flags with which setup.py compiles the kernels of an instruction set."""
    rows = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id in ("INSTRUCTION_SETS", "FLAGS"):
            rows[node.targets[0].id] = ast.literal_eval(node.value)
    of_isa = rows["INSTRUCTION_SETS"].get(platform.machine(), {}).get(isa, "")
    return shlex.split(f"{rows['FLAGS']} {of_isa} {os.environ.get('CXXFLAGS', '')}")


def load(isa: str) -> ctypes.CDLL:
    library = ROOT / "build" / f"peak_{isa}.so"
    newest = max(path.stat().st_mtime for path in (*SOURCES, *ROOT.glob("csrc/**/*.h"), ROOT / "setup.py"))
    if not library.exists() or library.stat().st_mtime < newest:
        library.parent.mkdir(exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler(), *flags(isa), "-shared", *map(str, SOURCES), "-o", str(made)], check=True)
        made.replace(library)
    loaded = ctypes.CDLL(str(library))
    for name in (*ARITHMETIC, "memory", "pages"):
        getattr(loaded, f"peak_{name}").restype = ctypes.c_int64
    return loaded


@contextmanager
def ceilings(isa: str, threads: int, names: set[str], case: Case) -> Iterator[dict[str, Callable[[], int]]]:
    """Calls that return the elements (ARITHMETIC) or bytes that all threads together did: a "block" is one of the
    case's, "memory" is read, "pages" are mapped for its results, which are allocated and freed."""
    library = load(isa)
    tasks = TASKS * threads  # several for each thread, so that one on a busy core takes fewer
    memory = torch.ones(MEMORY_BYTES // 4 if "memory" in names else tasks)

    with ThreadPoolExecutor(threads) as pool:

        def arithmetic(name: str) -> Callable[[], int]:
            function = getattr(library, f"peak_{name}")
            shape = (case.queries, case.references, case.dim) if name == "block" else ()
            sizes = [ctypes.c_int64(size) for size in shape]
            # How many elements a step is depends on the instruction set, so it is asked.
            steps = ctypes.c_int64(max(1, ELEMENTS // TASKS // function(ctypes.c_int64(1), *sizes)))
            return lambda: sum(pool.map(lambda _: function(steps, *sizes), range(tasks)))

        def read(part: torch.Tensor) -> int:
            return library.peak_memory(ctypes.c_void_p(part.data_ptr()), ctypes.c_int64(part.numel()))

        def map_pages(part: torch.Tensor) -> int:
            return library.peak_pages(ctypes.c_void_p(part.data_ptr()), ctypes.c_int64(part.numel()))

        def pages() -> int:
            made = [torch.empty(size, dtype=torch.uint8) for size in case.results]
            return sum(pool.map(map_pages, (part for result in made for part in result.tensor_split(threads))))

        calls = {name: arithmetic(name) for name in ARITHMETIC if name in names}
        if "pages" in names:
            calls["pages"] = pages
        if "memory" in names:
            calls["memory"] = lambda: sum(pool.map(read, memory.tensor_split(tasks)))
        yield calls
