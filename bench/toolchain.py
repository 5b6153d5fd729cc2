"""Finds NVIDIA's compiler and disassemblers: installed by pip, in a CUDA toolkit, or inside Triton.

None of them needs a GPU. Those of the extra `cuda-check` are preferred, so that counts are those of
one pinned version. A toolkit is found by CUDA_HOME or PATH. Triton contains the disassemblers.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: The cache of compiled kernels, which git ignores. It has one file for each content of csrc.
CACHE = ROOT / "build" / "sass"
#: As setup.py compiles the library.
FLAGS = ("-std=c++17", "-O3")
#: Programs that may precede the compiler in CXX.
LAUNCHERS = ("ccache", "sccache", "distcc")
REMEDY = "Run `pip install -e '.[cuda-check]'`, or install a CUDA toolkit and set CUDA_HOME."


class Missing(Exception):
    """A tool is not installed. The message names it and how to install it."""


def places() -> list[Path]:
    """The folders to search, the preferred one first."""
    packages = Path(sysconfig.get_path("purelib"))
    toolkits = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return [
        packages / "nvidia" / "cu13" / "bin",
        *(Path(toolkit) / "bin" for toolkit in toolkits),
        *(Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)),
        Path("/usr/local/cuda/bin"),
        packages / "triton" / "backends" / "nvidia" / "bin",
    ]


@cache
def tool(name: str) -> Path:
    """The tool of this name in the first folder that has it. Raises Missing."""
    for place in places():
        if (place / name).is_file() and os.access(place / name, os.X_OK):
            real = (place / name).resolve()  # nvcc does not find its files through a link
            return real if real.name == name else place / name
    raise Missing(f"{name} was not found. {REMEDY}")


def toolkit() -> Path:
    """The toolkit's folder, as in CUDA_HOME."""
    return tool("nvcc").parents[1]


def unsupported_reason(*names: str) -> str | None:
    """The reason why these tools cannot be used here, or None."""
    try:
        for name in names:
            tool(name)
    except Missing as missing:
        return str(missing)
    return None


def run(name: str, *arguments: object) -> str:
    """The output of the tool. Raises RuntimeError with its messages if it fails."""
    done = subprocess.run([tool(name), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} {' '.join(map(str, arguments))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def compile_cuda(source: Path, arch: int) -> Path:
    """The cubin of a .cu file for sm_<arch>, compiled once for each content of the file and of csrc's headers."""
    digest = hashlib.sha256(f"{FLAGS}{version()}{_host()}".encode())
    headers = (ROOT / "csrc").rglob("*")
    for path in [source, *sorted(path for path in headers if path.suffix in (".h", ".cuh"))]:
        digest.update(path.read_bytes())
    cubin = CACHE / f"{source.stem}_{arch}_{digest.hexdigest()[:16]}.cubin"
    if not cubin.exists():
        keep_only_newest(source.stem, arch)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            temporary = Path(folder) / cubin.name
            include = f"-I{ROOT / 'csrc'}"
            run("nvcc", f"-arch=sm_{arch}", *FLAGS, *_host(), include, "-cubin", "-o", temporary, source)
            temporary.replace(cubin)
    return cubin


def keep_only_newest(stem: str, arch: int) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob(f"{stem}_{arch}_*.cubin"):
        old.unlink()


def _host() -> list[str]:
    """The option by which nvcc uses the same host compiler as the rest of the build."""
    return ["-ccbin", compiler()] if os.environ.get("CXX") else []


def compiler() -> str:
    """The C++ compiler in CXX, without ccache or another launcher before it."""
    return next(word for word in shlex.split(os.environ.get("CXX") or "c++") if Path(word).name not in LAUNCHERS)


@cache
def version() -> str:
    """The versions of the compiler and the disassembler in one line."""
    numbers = (re.search(r"\bV([\d.]+)", run(name, "--version")) for name in ("nvcc", "nvdisasm"))
    return "nvcc {}, nvdisasm {}".format(*(number.group(1) if number else "unknown" for number in numbers))


def demangle(names: list[str]) -> list[str]:
    """C++ names as written, without the namespaces of csrc; unchanged where binutils are missing."""
    if not names or not shutil.which("c++filt"):
        return names
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return re.sub(r"dissim::|\(anonymous namespace\)::", "", done.stdout).splitlines()
