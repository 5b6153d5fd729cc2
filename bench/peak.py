"""The peaks that peak.cpp measures. It is compiled at first use with the library's flags and runs on all threads.

They take part in the rounds of a case like the competitors, so that a fraction of the peak compares times of the same
minute.
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
SOURCES = Path(__file__).with_suffix(".cpp"), ROOT / "csrc" / "cpu" / "memory.cpp"
ARITHMETIC = ("score", "tile", "block", "backward", "sad")
#: Elements of one arithmetic call on a thread, which takes about 50 ms.
ELEMENTS = 1 << 31
TASKS = 16
#: Bytes that one memory call reads, far more than any cache holds.
MEMORY_BYTES = 512 << 20
#: Page faults are measured for larger results only. Smaller ones reuse freed memory, and starting the thread pool
#: takes 0.06 ms.
MIN_RESULT_BYTES = 8 << 20


def flags(isa: str) -> list[str]:
    """The flags with which setup.py compiles the kernels of an instruction set."""
    rows = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id in ("INSTRUCTION_SETS", "FLAGS"):
            rows[node.targets[0].id] = ast.literal_eval(node.value)
    isa_flags = rows["INSTRUCTION_SETS"].get(platform.machine(), {}).get(isa, "")
    return shlex.split(f"{rows['FLAGS']} {isa_flags} {os.environ.get('CXXFLAGS', '')}")


def load(isa: str) -> ctypes.CDLL:
    library = ROOT / "build" / f"peak_{isa}.so"
    newest = max(path.stat().st_mtime for path in (*SOURCES, *ROOT.glob("csrc/**/*.h"), ROOT / "setup.py"))
    if not library.exists() or library.stat().st_mtime < newest:
        library.parent.mkdir(exist_ok=True)
        temporary = library.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler(), *flags(isa), "-shared", *map(str, SOURCES), "-o", str(temporary)], check=True)
        temporary.replace(library)
    loaded = ctypes.CDLL(str(library))
    for name in (*ARITHMETIC, "memory", "pages"):
        getattr(loaded, f"peak_{name}").restype = ctypes.c_int64
    return loaded


@contextmanager
def peak_calls(isa: str, threads: int, names: set[str], case: Case) -> Iterator[dict[str, Callable[[], int]]]:
    """Calls that return the elements (ARITHMETIC) or bytes that all threads processed together.

    "block" has the size of the case's blocks, "memory" reads, and "pages" allocates and frees the case's results and
    takes their first-touch page faults.
    """
    library = load(isa)
    tasks = TASKS * threads  # several per thread, so that a thread on a busy core takes fewer
    memory = torch.ones(MEMORY_BYTES // 4 if "memory" in names else tasks)

    with ThreadPoolExecutor(threads) as pool:

        def arithmetic(name: str) -> Callable[[], int]:
            function = getattr(library, f"peak_{name}")
            shape = (case.queries, case.references, case.dim) if name == "block" else ()
            sizes = [ctypes.c_int64(size) for size in shape]
            # The elements of a step depend on the instruction set, so one step is run to count them.
            steps = ctypes.c_int64(max(1, ELEMENTS // TASKS // function(ctypes.c_int64(1), *sizes)))
            return lambda: sum(pool.map(lambda _: function(steps, *sizes), range(tasks)))

        def read(part: torch.Tensor) -> int:
            return library.peak_memory(ctypes.c_void_p(part.data_ptr()), ctypes.c_int64(part.numel()))

        def map_pages(part: torch.Tensor) -> int:
            return library.peak_pages(ctypes.c_void_p(part.data_ptr()), ctypes.c_int64(part.numel()))

        def pages() -> int:
            results = [torch.empty(size, dtype=torch.uint8) for size in case.results]
            return sum(pool.map(map_pages, (part for result in results for part in result.tensor_split(threads))))

        calls = {name: arithmetic(name) for name in ARITHMETIC if name in names}
        if "pages" in names:
            calls["pages"] = pages
        if "memory" in names:
            calls["memory"] = lambda: sum(pool.map(read, memory.tensor_split(tasks)))
        yield calls
