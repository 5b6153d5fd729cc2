"""The backend "cuda" on CPU tensors: the sources of the kernels, compiled with g++ and executed on the CPU.

`build_library` compiles csrc/cuda into a torch library; `install` replaces the backend "cuda" by it in this process.
"""

from __future__ import annotations

import functools
import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import ninja
import torch

from bench import toolchain
from dissim_kernels import dispatch
from dissim_kernels.backends import logsumexp_bands, native

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
FLAGS = "-std=c++20 -g1 -fPIC -Wno-psabi -DDISSIM_CUDA_ON_HOST -DDISSIM_ISA=on_cuda"
#: name -> flags of the kernels, flags of the emulation, which ThreadSanitizer must not instrument. "steps" counts the
#: basic blocks that are executed.
SANITIZERS = {
    "plain": ("-O2", "-O2"),
    "thread": ("-O1 -fsanitize=thread", "-O1 -DDISSIM_TSAN"),
    "address": (
        "-Og -fsanitize=address,undefined -fno-sanitize-recover=undefined",
        "-O1 -fsanitize=address -DDISSIM_ASAN",
    ),
    "steps": ("-O2 -fsanitize-coverage=trace-pc", "-O2 -DDISSIM_STEPS"),
}


def unsupported_reason() -> str | None:
    """The reason why kernels cannot be executed here, or None."""
    try:
        headers()
    except toolchain.Missing as missing:
        return str(missing)
    return None


def headers() -> Path:
    """The folder of CUDA's headers, which define the half types; raises toolchain.Missing."""
    for place in toolchain.places():
        if (place.parent / "include" / "cuda_fp16.h").exists():
            return place.parent / "include"
    raise toolchain.Missing(f"cuda_fp16.h was not found. {toolchain.REMEDY}")


def build(target: str, sources: list[Path], sanitizer: str = "plain", link: str = "") -> Path:
    """Compiles the sources and the emulation into build/cuda_on_host/<sanitizer>/<target>, incrementally."""
    folder = ROOT / "build" / "cuda_on_host" / sanitizer
    folder.mkdir(parents=True, exist_ok=True)
    kernel_flags, emulation_flags = SANITIZERS[sanitizer]
    includes = shlex.join([f"-I{HERE}", "-isystem", str(headers())])
    objects = []
    with (folder / f"{target}.ninja").open("w") as file:
        writer = ninja.ninja_syntax.Writer(file, width=1000)
        writer.rule(
            "compile",
            f"g++ {FLAGS} {includes} $extra -MMD -MF $out.d -x c++ -c $in -o $out",
            depfile="$out.d",
            deps="gcc",
        )
        writer.rule("link", f"g++ $in -o $out {kernel_flags} {link}")
        emulation = [HERE / "cuda_on_host.cpp", HERE / "runtime.cpp"]
        for source in [*sources, *emulation]:
            shared = source.is_relative_to(ROOT / "csrc") or source.is_relative_to(HERE.parent)
            objects.append(f"{source.stem}.o" if shared else f"{target}_{source.stem}.o")
            extra = emulation_flags if source in emulation else kernel_flags
            torch_headers = shlex.quote(str(Path(torch.__file__).parent / "include"))
            if source.stem == "torch_cuda_bindings":
                extra += f" -isystem {torch_headers} -isystem {torch_headers}/torch/csrc/api/include"
                extra += " -DTORCH_TARGET_VERSION=0x020a000000000000"
            writer.build(objects[-1], "compile", str(source), variables={"extra": extra})
        writer.build(target, "link", objects)
    done = subprocess.run(
        [Path(ninja.BIN_DIR) / "ninja", "-C", folder, "-f", f"{target}.ninja", target], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-4000:])
    return folder / target


def build_library(stream: bool = True) -> Path:
    """The torch library. stream=False links it as with a CPU build of torch, which has no CUDA streams."""
    torch_libraries = Path(torch.__file__).parent / "lib"
    sources = [*KERNELS, ROOT / "csrc" / "torch_cuda_bindings.cpp", *([HERE / "stream.cpp"] if stream else [])]
    name = "library.so" if stream else "library_without_stream.so"
    return build(name, sources, link=f"-shared -L{torch_libraries} -ltorch_cpu -ltorch -lc10")


def build_check(sanitizer: str, target: str = "check", score: Path = ROOT / "csrc" / "cuda" / "score.cu") -> Path:
    """A program: native_check.cpp with the kernels, of which the score kernels are those of another file.

    That file is the first, so that its instances of templates are used.
    """
    others = [kernel for kernel in KERNELS if kernel.name != score.name]
    return build(target, [score, *others, HERE / "kernels.cpp", HERE.parent / "native_check.cpp"], sanitizer)


def build_steps() -> Path:
    """A program: topk_steps.cpp, which counts the steps of the top-k kernels."""
    sources = [ROOT / "csrc" / "cuda" / f"{stem}.cu" for stem in ("topk", "launch")]
    return build("topk_steps", [*sources, HERE / "topk_steps.cpp"], "steps")


def load(library: Path) -> ModuleType:
    """A copy of the native backend that calls the library's operators."""
    torch.ops.load_library(library)
    spec = importlib.util.spec_from_file_location("dissim_kernels.backends.on_host", native.__file__)
    on_host = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = on_host
    spec.loader.exec_module(on_host)
    on_host.operators = torch.ops.dissim_cuda_on_host
    on_host.unsupported_reason = lambda problem: None
    on_host.logsumexp_backward = functools.partial(
        logsumexp_bands.backward, on_host.score, on_host.score_backward
    )  # as in backends/cuda.py
    return on_host


def install(library: Path) -> None:
    """Replaces the backend "cuda" by that copy."""
    dispatch.BACKENDS["cuda"] = load(library)
