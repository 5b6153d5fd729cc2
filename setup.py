"""Builds every kernel for every instruction set of this architecture, once, into two libraries of dissim_kernels:
_native.so with torch's operators, and the Python module _numpy, which needs no torch.

The first uses torch's stable ABI: one build serves torch 2.10 and later. Ninja compiles it; a second build only
compiles what changed.
"""

import platform
import subprocess
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
    "-std=c++17 -O3 -fPIC -fvisibility=hidden -Wall -Wno-psabi -Wno-maybe-uninitialized"
    " -fno-math-errno -fno-trapping-math"
)


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
        (folder / "build.ninja").write_text(self.rules(ninja, **outputs))
        subprocess.run(
            [Path(ninja.BIN_DIR) / "ninja", "-C", folder, *(["-v"] if self.verbose > 1 else [])], check=True
        )

    def rules(self, ninja, _native, _numpy):
        import io
        import json
        import os
        import shlex
        import sysconfig

        import pybind11
        import torch as torch_package

        torch = Path(torch_package.__file__).parent
        text = io.StringIO()
        writer = ninja.ninja_syntax.Writer(text, width=1000)
        writer.variable("cxx", os.environ.get("CXX", "c++"))
        writer.variable("flags", f"{FLAGS} {os.environ.get('CXXFLAGS', '')}")
        writer.rule("compile", "$cxx $flags $extra -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        writer.rule("link", "$cxx -shared $in -o $out $extra")

        def compile(source, name, extra):
            path = str(ROOT / "csrc" / source)
            return writer.build(f"{name}.o", "compile", path, variables={"extra": extra})

        def define(name, text):
            return shlex.quote(f"-D{name}={json.dumps(text)}")

        sets = INSTRUCTION_SETS.get(platform.machine(), {"plain": ""})
        core = []
        for isa, flags in sets.items():
            for kernel in KERNELS:
                core += compile(f"cpu/{kernel}.cpp", f"{kernel}_{isa}", f"{flags} -DDISSIM_ISA={isa}")
        rows = "".join(f"row({isa})" for isa in sets)
        core += compile("cpu/isa.cpp", "isa", f"'-DDISSIM_ISAS(row)={rows}'")

        include = f"-isystem {torch}/include -isystem {torch}/include/torch/csrc/api/include"
        # 2.10, the oldest torch supported: version 0xMMmmpp0000000000
        bindings = compile(
            "torch_bindings.cpp", "torch_bindings", f"{include} -DTORCH_TARGET_VERSION=0x020a000000000000"
        )
        libraries = f"-L{torch}/lib -ltorch_cpu -ltorch -lc10"
        writer.build(str(_native), "link", core + bindings, variables={"extra": libraries})

        include = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_path('include')}"
        facts = {
            "DISSIM_VERSION": self.distribution.get_version(),
            "DISSIM_FLAGS": f"{FLAGS} {os.environ.get('CXXFLAGS', '')}".strip(),
            "DISSIM_KERNELS": " ".join(KERNELS),
        }
        defines = " ".join(define(name, text) for name, text in facts.items())
        bindings = compile("numpy_bindings.cpp", "numpy_bindings", f"{include} {defines}")
        writer.build(str(_numpy), "link", core + bindings, variables={"extra": "-pthread"})
        return text.getvalue()


sources = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/**/*.*"))]
setup(
    ext_modules=[Extension(f"dissim_kernels.{name}", sources) for name in ("_native", "_numpy")],
    cmdclass={"build_ext": NinjaBuild},
)
