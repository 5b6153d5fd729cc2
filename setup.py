"""Builds dissim_kernels/_native.so: every kernel for every instruction set of this architecture, one library.

The library uses torch's stable ABI: one build serves torch 2.10 and later. Ninja compiles it; a second build only
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
        return name.replace(".", "/") + ".so"  # torch.ops.load_library's, not an importable module

    def build_extension(self, extension):
        import ninja
        import torch

        output = Path(self.get_ext_fullpath(extension.name)).absolute()
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(self.build_temp).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(self.rules(ninja, Path(torch.__file__).parent, output))
        subprocess.run(
            [Path(ninja.BIN_DIR) / "ninja", "-C", folder, *(["-v"] if self.verbose > 1 else [])], check=True
        )

    def rules(self, ninja, torch, output):
        import io
        import os

        text = io.StringIO()
        writer = ninja.ninja_syntax.Writer(text, width=1000)
        writer.variable("cxx", os.environ.get("CXX", "c++"))
        writer.variable("flags", f"{FLAGS} {os.environ.get('CXXFLAGS', '')}")
        writer.rule("compile", "$cxx $flags $extra -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        writer.rule("link", "$cxx -shared $in -o $out $extra")
        objects = []

        def compile(source, name, extra):
            objects.append(f"{name}.o")
            writer.build(objects[-1], "compile", str(ROOT / "csrc" / source), variables={"extra": extra})

        sets = INSTRUCTION_SETS.get(platform.machine(), {"plain": ""})
        for isa, flags in sets.items():
            for kernel in KERNELS:
                compile(f"cpu/{kernel}.cpp", f"{kernel}_{isa}", f"{flags} -DDISSIM_ISA={isa}")
        rows = "".join(f"row({isa})" for isa in sets)
        compile("cpu/isa.cpp", "isa", f"'-DDISSIM_ISAS(row)={rows}'")
        include = f"-isystem {torch}/include -isystem {torch}/include/torch/csrc/api/include"
        # 2.10, the oldest torch supported: version 0xMMmmpp0000000000
        compile("torch_bindings.cpp", "torch_bindings", f"{include} -DTORCH_TARGET_VERSION=0x020a000000000000")
        writer.build(str(output), "link", objects, variables={"extra": f"-L{torch}/lib -ltorch_cpu -ltorch -lc10"})
        return text.getvalue()


sources = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/**/*.*"))]
setup(ext_modules=[Extension("dissim_kernels._native", sources)], cmdclass={"build_ext": NinjaBuild})
