"""The program native_check.cpp: with the CUDA kernels under sanitizers, and compiled for another processor.

The stress tests check more sizes and dtypes under sanitizers, and the optimized NEON kernels.
"""

import ast
import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).parent
RIGHT = 0, "every kernel is right\n"
OTHER_ORDER = {"DISSIM_HOST_ORDER": "reverse", "DISSIM_HOST_COPIES": "early"}
#: Sanitizer -> settings of a run.
SANITIZED_RUNS = [("address", {}), ("thread", {}), ("thread", OTHER_ORDER)]


def run_sanitized(program, sizes="quick", **settings):
    """The output of native_check on few sizes, and whether every kernel is right."""
    options = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1", **settings}
    done = subprocess.run([program, sizes], env={**os.environ, **options}, capture_output=True, text=True)
    return done.stdout + done.stderr, done.returncode == 0 and "every kernel is right" in done.stdout


def no_emulator():
    """The reason why NEON kernels cannot run here, or None."""
    if not shutil.which("aarch64-linux-gnu-g++"):
        return "no cross compiler: g++-aarch64-linux-gnu"
    return None if shutil.which("qemu-aarch64") else "no emulator: qemu-user"


def run_neon(folder, optimization):
    """The exit status and output of all checks of the NEON kernels, compiled with the library's own flags but for the
    optimization level."""
    flags = [*shlex.split(setup_py("FLAGS")), optimization, "-DDISSIM_ISA=neon"]
    csrc = TESTS.parent / "csrc" / "cpu"
    sources = [TESTS / "native_check.cpp", *(csrc / f"{name}.cpp" for name in [*setup_py("KERNELS"), "memory"])]

    def compile(source):
        object_file = folder / f"{source.stem}.o"
        subprocess.run(["aarch64-linux-gnu-g++", *flags, "-c", str(source), "-o", str(object_file)], check=True)
        return str(object_file)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile, sources))
    program = str(folder / "native_check")
    subprocess.run(["aarch64-linux-gnu-g++", "-static", "-pthread", *objects, "-o", program], check=True)
    done = subprocess.run(["qemu-aarch64", program], capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout


def setup_py(name):
    """A constant of setup.py, which runs a build when it is imported."""
    for node in ast.parse((TESTS.parent / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
