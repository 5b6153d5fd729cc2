"""Builds every kernel for every instruction set of this architecture, once, into two libraries of dissim_kernels:
_native.so with torch's operators, and the Python module _numpy, which needs no torch.

The first uses torch's stable ABI: one build serves torch 2.10 and later. CUDA's kernels are compiled in where torch
is a CUDA build and nvcc is found; FORCE_CUDA=1 asks for them beside any torch, FORCE_CUDA=0 leaves them out. A second
build only compiles what changed.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
#: instruction set -> compiler flags, best first; isa.cpp chooses at run time. A new set is one row here and there.
INSTRUCTION_SETS = {
    "x86_64": {
        "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512",
        "avx2": "-mavx2 -mfma -mf16c",
        "plain": "",
    },
    "aarch64": {"neon": ""},
}
KERNELS = ["score", "score_backward", "topk", "hinge", "hinge_backward", "quantise", "certified"]
FLAGS = (
    "-std=c++20 -O3 -fPIC -fvisibility=hidden -Wall -Wno-psabi -Wno-maybe-uninitialized"
    " -fno-math-errno -fno-trapping-math"
)
#: Compute capabilities of the CUDA kernels, in the form of TORCH_CUDA_ARCH_LIST, which overrides them.
CUDA_ARCHS = "8.0;9.0;10.0+PTX"


def find_nvcc(torch):
    """The nvcc to compile CUDA's kernels with, or None where they are to be left out; an error if it is missed."""
    asked = os.environ.get("FORCE_CUDA", "1" if torch.version.cuda else "0")
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    search = os.pathsep.join([*(f"{folder}/bin" for folder in folders if folder), os.environ.get("PATH", "")])
    found = shutil.which("nvcc", path=search) if asked == "1" else None
    if found is None and os.environ.get("FORCE_CUDA") == "1":
        raise SystemExit(
            "FORCE_CUDA: expected nvcc in CUDA_HOME/bin or on PATH, found none. "
            "Install the CUDA toolkit and set CUDA_HOME, or leave FORCE_CUDA unset to build for the CPU."
        )
    return found and Path(found).resolve()


def gencodes(archs):
    """nvcc's flags for a TORCH_CUDA_ARCH_LIST such as "8.0;9.0;10.0+PTX"."""
    flags = []
    for arch in re.split(r"[;\s]+", archs.strip()):
        if not (parts := re.fullmatch(r"(\d+)\.(\d+a?)(\+PTX)?", arch)):
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: expected a list such as {CUDA_ARCHS!r}, got {arch!r} in it.")
        number = parts[1] + parts[2]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if parts[3]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return " ".join(flags)


def define(name, text):
    """The compiler's flag that defines `name` as a string."""
    return shlex.quote(f"-D{name}={json.dumps(text)}")


class NinjaBuild(build_ext):
    """Writes build.ninja and runs it. Compiler and flags come from CXX and CXXFLAGS, as users expect."""

    def get_ext_filename(self, name):
        if name.endswith("_native"):
            return name.replace(".", "/") + ".so"  # torch.ops.load_library's, not an importable module
        return super().get_ext_filename(name)

    def build_extensions(self):
        import ninja

        outputs = {e.name.split(".")[-1]: Path(self.get_ext_fullpath(e.name)).absolute() for e in self.extensions}
        folder = Path(self.build_temp).absolute()
        for path in (folder, *(output.parent for output in outputs.values())):
            path.mkdir(parents=True, exist_ok=True)
        with (folder / "build.ninja").open("w") as file:
            self.write_rules(ninja.ninja_syntax.Writer(file, width=1000), **outputs)
        subprocess.run(
            [Path(ninja.BIN_DIR) / "ninja", "-C", folder, *(["-v"] if self.verbose > 1 else [])], check=True
        )

    def write_rules(self, writer, _native, _numpy):
        writer.variable("cxx", os.environ.get("CXX", "c++"))
        writer.variable("flags", f"{FLAGS} {os.environ.get('CXXFLAGS', '')}")
        writer.rule("compile", "$cxx $flags $extra -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        writer.rule("link", "$cxx -shared $in -o $out $extra")

        def compile(source, name, extra):
            path = str(ROOT / "csrc" / source)
            return writer.build(f"{name}.o", "compile", path, variables={"extra": extra})

        sets = INSTRUCTION_SETS.get(platform.machine(), {"plain": ""})
        core = []
        for isa, flags in sets.items():
            for kernel in KERNELS:
                core += compile(f"cpu/{kernel}.cpp", f"{kernel}_{isa}", f"{flags} -DDISSIM_ISA={isa}")
        rows = "".join(f"row({isa})" for isa in sets)
        core += compile("cpu/isa.cpp", "isa", f"'-DDISSIM_ISAS(row)={rows}'")
        core += compile("cpu/memory.cpp", "memory", "")
        self.write_native(writer, compile, core, _native)
        self.write_numpy(writer, compile, core, _numpy)

    def write_native(self, writer, compile, core, output):
        """The operators of torch, of the CPU and where nvcc is of CUDA."""
        import torch

        folder, nvcc = Path(torch.__file__).parent, find_nvcc(torch)
        # 2.10, the oldest torch supported: version 0xMMmmpp0000000000. Bindings compute nothing: -O1 compiles faster.
        include = f"-O1 -isystem {folder}/include -isystem {folder}/include/torch/csrc/api/include"
        include += " -DTORCH_TARGET_VERSION=0x020a000000000000"
        libraries = f"-L{folder}/lib -ltorch_cpu -ltorch -lc10"
        archs = os.environ.get("TORCH_CUDA_ARCH_LIST", CUDA_ARCHS) if nvcc else ""
        objects = core + compile(
            "torch_bindings.cpp", "torch_bindings", f"{include} {define('DISSIM_CUDA_ARCHS', archs)}"
        )
        if nvcc:
            objects += compile("torch_cuda_bindings.cpp", "torch_cuda_bindings", include)
            flags = f"-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden {gencodes(archs)}"
            writer.rule("nvcc", f"{nvcc} {flags} -MD -MF $out.d -c $in -o $out", depfile="$out.d")
            for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
                objects += writer.build(f"{source.stem}_cuda.o", "nvcc", str(source))
            toolkit = nvcc.parents[1]
            libraries += f" -L{toolkit}/lib64 -L{toolkit}/lib -lcudart_static -lrt -ldl"
        writer.build(str(output), "link", objects, variables={"extra": libraries})

    def write_numpy(self, writer, compile, core, output):
        """The module for NumPy arrays, from the same objects."""
        import pybind11

        facts = {
            "DISSIM_VERSION": self.distribution.get_version(),
            "DISSIM_FLAGS": f"{FLAGS} {os.environ.get('CXXFLAGS', '')}".strip(),
            "DISSIM_KERNELS": " ".join(KERNELS),
        }
        include = f"-O1 -isystem {pybind11.get_include()} -isystem {sysconfig.get_path('include')}"
        defines = " ".join(define(name, text) for name, text in facts.items())
        objects = core + compile("numpy_bindings.cpp", "numpy_bindings", f"{include} {defines}")
        writer.build(str(output), "link", objects, variables={"extra": "-pthread"})


sources = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/**/*.*"))]
setup(
    ext_modules=[Extension(f"dissim_kernels.{name}", sources) for name in ("_native", "_numpy")],
    cmdclass={"build_ext": NinjaBuild},
)
