"""Builds the two libraries of dissim_kernels: _native.so with the operators for torch, and the Python module _numpy,
which does not need torch. Each kernel is compiled once for each instruction set of this architecture.

_native.so uses torch's stable ABI, so one build works with torch 2.10 and later. It includes the CUDA kernels if
torch is a CUDA build and nvcc is found. FORCE_CUDA=1 includes them with any torch, FORCE_CUDA=0 excludes them. CXX,
CXXFLAGS, MAX_JOBS, CUDA_HOME and TORCH_CUDA_ARCH_LIST have the same meaning as for torch's own extensions. A second
build only compiles what changed.
"""

import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
#: instruction set -> compiler flags, best first. csrc/cpu/isa.cpp chooses at run time. A new set needs a row in both.
INSTRUCTION_SETS = {
    "x86_64": {
        "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512",
        "avx2": "-mavx2 -mfma -mf16c",
        "plain": "",
    },
    "aarch64": {"neon": ""},
}
KERNELS = [
    "score",
    "score_backward",
    "topk",
    "hinge",
    "hinge_backward",
    "quantize",
    "quantized_topk",
    "clustered_topk",
    "logsumexp",
    "logsumexp_backward",
    "listed_scores",
    "rank",
]
FLAGS = (
    "-std=c++20 -O3 -fPIC -fvisibility=hidden -Wall -Wno-psabi -Wno-maybe-uninitialized"
    " -fno-math-errno -fno-trapping-math"
)
#: What csrc/cpu/simd.h needs and g++ before 12 and clang before 15 do not have.
COMPILER_PROBE = """
typedef float Vector __attribute__((vector_size(16)));
Vector reversed(Vector a) { return __builtin_shufflevector(a, a, 3, 2, 1, 0); }
#ifdef __x86_64__
float rounded(float a) { return _Float16(a); }
#endif
"""
#: Compute capabilities for which CUDA kernels are compiled. TORCH_CUDA_ARCH_LIST, in the same form, overrides it.
CUDA_ARCHS = "8.0;9.0;10.0+PTX"
#: The minimum capability: the kernels use asynchronous copies to shared memory and bfloat16.
CUDA_MIN = (8, 0)
#: torch's names for capabilities.
CUDA_NAMES = {
    **{"Volta": "7.0+PTX", "Turing": "7.5+PTX", "Ampere": "8.0;8.6+PTX", "Ada": "8.9+PTX"},
    **{"Hopper": "9.0+PTX", "Blackwell": "10.0;10.3;12.0;12.1+PTX"},
}


# Checks of what a build needs, before anything is compiled. Each missing part gives an error of one sentence.


def check_machine():
    if sys.platform != "linux" or platform.machine() not in INSTRUCTION_SETS:
        raise SystemExit(
            f"dissim-kernels: expected Linux on {' or '.join(INSTRUCTION_SETS)}, got {platform.system()} on "
            f"{platform.machine()}. Build in Linux: WSL 2 on Windows, a container on macOS."
        )


def check_python():
    for package, requirement in (("torch", "torch>=2.10"), ("pybind11", "pybind11>=2.13")):
        if not importlib.util.find_spec(package):
            raise SystemExit(
                f"dissim-kernels: expected {package} in {sys.executable}, found none. Run `pip install "
                f"'{requirement}'` first, or omit --no-build-isolation."
            )
    import torch

    if torch.__version__ < (2, 10):
        raise SystemExit(f"dissim-kernels: expected torch 2.10 or newer, got {torch.__version__}. Upgrade it.")
    folder = sysconfig.get_path("include")
    if not (Path(folder) / "Python.h").exists():
        version = "{}.{}".format(*sys.version_info)
        raise SystemExit(
            f"dissim-kernels: expected the headers of Python in {folder}, found no Python.h. "
            f"Install them; on Debian and Ubuntu: apt install python{version}-dev."
        )


def find_ninja():
    scripts = sysconfig.get_path("scripts")
    if found := shutil.which("ninja", path=os.pathsep.join([scripts, os.environ.get("PATH", "")])):
        return found
    raise SystemExit(
        f"dissim-kernels: expected the program ninja in {scripts} or on PATH, found none. Run `pip install ninja`."
    )


def compiler():
    """The command in CXX, as a list. CXX is a path, or a command with arguments such as "ccache g++-12"."""
    cxx = os.environ.get("CXX", "c++")
    return [cxx] if shutil.which(cxx) else shlex.split(cxx)


def check_compiler():
    try:
        command = [*compiler(), "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
        works = subprocess.run(command, input=COMPILER_PROBE, capture_output=True, text=True).returncode == 0
        version = subprocess.run([*compiler(), "--version"], capture_output=True, text=True).stdout.splitlines()
    except OSError:
        works, version = False, ["none: no such program"]
    if not works:
        found = version[0] if version else "another"
        raise SystemExit(
            f"CXX={shlex.join(compiler())}: expected g++ 12, clang++ 15 or newer, got {found}. "
            "Install one and name it; on Debian and Ubuntu: apt install g++-12, CXX=g++-12."
        )


def jobs():
    """Ninja's option for MAX_JOBS, the number of compilers that run at once."""
    max_jobs = os.environ.get("MAX_JOBS", "")
    if max_jobs and not re.fullmatch("[1-9][0-9]*", max_jobs):
        raise SystemExit(f"MAX_JOBS: expected how many compilers to run at once, such as 4, got {max_jobs!r}.")
    return [f"-j{max_jobs}"] if max_jobs else []


# CUDA: the compiler, the architectures, the libraries.


def force_cuda():
    """FORCE_CUDA: True, False, or None if it is not set."""
    value = os.environ.get("FORCE_CUDA", "")
    if value.lower() in ("1", "true", "on", "yes"):
        return True
    if value.lower() in ("0", "false", "off", "no"):
        return False
    if value:
        raise SystemExit(f"FORCE_CUDA: expected 1, true, on or yes, or 0, false, off or no, got {value!r}.")
    return None


def find_nvcc(torch):
    """(nvcc, "") for the CUDA kernels, or (None, the reason why not). Raises if FORCE_CUDA=1 and there is none."""
    forced = force_cuda()
    if forced is False:
        return None, "FORCE_CUDA excludes them"
    if forced is None and not torch.version.cuda:
        return None, f"torch {torch.__version__} is built without CUDA; FORCE_CUDA=1 compiles them anyway"
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    folders = [*(f"{home}/bin" for home in homes if home), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    found = shutil.which("nvcc", path=os.pathsep.join(folders))
    if found:
        # nvcc does not find its other programs if it is called through a symbolic link. A link to ccache must keep
        # its name.
        real = Path(found).resolve()
        return (real if real.name == "nvcc" else Path(found)), ""
    missing = "nvcc was not found in CUDA_HOME/bin, CUDA_PATH/bin, on PATH or in /usr/local/cuda/bin"
    if forced:
        raise SystemExit(
            f"FORCE_CUDA: {missing}. Install the CUDA toolkit and set CUDA_HOME, "
            "or unset FORCE_CUDA to build for the CPU."
        )
    return None, missing


def nvcc_output(nvcc, *options):
    """What nvcc prints to stdout and stderr."""
    done = subprocess.run([nvcc, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{nvcc} {' '.join(options)}: expected NVIDIA's nvcc, got: {done.stdout.strip()}")
    return done.stdout


def cuda_archs(nvcc, torch):
    """The architectures to compile for, in the form of TORCH_CUDA_ARCH_LIST, and a text of those skipped, or ""."""
    requested = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHS
    if requested == "native":
        capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        requested = ";".join(f"{major}.{minor}" for major, minor in sorted(capabilities))
        if not requested:
            raise SystemExit(
                "TORCH_CUDA_ARCH_LIST=native: expected a CUDA device, torch finds none. Name 8.0 or newer."
            )
    for name, archs in CUDA_NAMES.items():
        requested = requested.replace(name, archs)
    supported = {
        divmod(int(number), 10) for number in re.findall(r"compute_(\d+)", nvcc_output(nvcc, "--list-gpu-arch"))
    }
    kept, ptx, skipped = {}, set(), []
    for arch in re.split(r"[;\s]+", requested.strip("; ")):
        if not (parts := re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)):
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: expected a list such as {CUDA_ARCHS!r}, got {arch!r} in it.")
        capability = int(parts[1]), int(parts[2])
        number = f"{parts[1]}.{parts[2]}{parts[3]}"
        if parts[4]:
            ptx.add(number)
        if capability < CUDA_MIN:
            skipped.append(f"{number}, because the kernels need {'{}.{}'.format(*CUDA_MIN)}")
        elif capability not in supported:
            skipped.append(f"{number}, which this nvcc does not support")
        else:
            kept[number] = capability
    if not kept:
        raise SystemExit(
            f"TORCH_CUDA_ARCH_LIST: expected an architecture to compile for, got {requested!r}. "
            f"Skipped: {'; '.join(skipped)}."
        )
    if ptx and not ptx & kept.keys():
        ptx.add(max(kept, key=kept.get))  # PTX of the newest one kept, so that newer GPUs are still supported
    return ";".join(number + "+PTX" * (number in ptx) for number in kept), "; ".join(skipped)


def gencodes(archs):
    """nvcc's flags for a list such as "8.0;9.0;10.0+PTX"."""
    flags = []
    for arch in archs.split(";"):
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def cuda_libraries(nvcc):
    """The linker flags for the CUDA runtime. nvcc prints where it is; its own folder may be that of a wrapper."""
    output = nvcc_output(nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", "none")
    folders, top = (re.search(rf"^#\$ {name}=(.*)$", output, re.M) for name in ("LIBRARIES", "TOP"))
    if not folders or not top:
        raise SystemExit(f"{nvcc} --dryrun: expected lines with LIBRARIES= and TOP=, got: {output.strip()}")
    wheels = f"-L{top[1]}/lib"  # pip installs here what nvcc looks for in lib64
    return [*shlex.split(folders[1]), wheels, "-lcudart_static", "-lrt", "-ldl"]


# The build.


def define(name, text):
    """The compiler flag that defines the macro `name` as a string."""
    return f"-D{name}={json.dumps(text)}"


class NinjaFile:
    """The lines of a build.ninja file. Commands run in a shell; ninja quotes $in and $out."""

    def __init__(self):
        self.lines = []

    def rule(self, name, command, **settings):
        self.lines += [f"rule {name}", f"  command = {command}", *(f"  {key} = {settings[key]}" for key in settings)]

    def build(self, output, rule, sources, extra=()):
        """One build step. `extra`: more arguments for its command."""
        paths = (re.sub("[$ :]", r"$\g<0>", str(path)) for path in (output, *sources))
        self.lines += ["build {}: {} {}".format(next(paths), rule, " ".join(paths)), f"  extra = {quoted(extra)}"]
        return [output]


def quoted(arguments):
    """Arguments, quoted for a command in build.ninja."""
    return shlex.join(map(str, arguments)).replace("$", "$$")


class NinjaBuild(build_ext):
    """Writes build.ninja and runs ninja. CXX and CXXFLAGS set the compiler and additional flags."""

    def get_ext_filename(self, name):
        if name.endswith("_native"):
            return name.replace(".", "/") + ".so"  # for torch.ops.load_library; not an importable module
        return super().get_ext_filename(name)

    def run(self):
        check_machine()
        check_python()
        check_compiler()
        find_ninja()
        super().run()

    def build_extensions(self):
        options = [*jobs(), *(["-v"] if self.verbose > 1 else [])]
        outputs = {e.name.split(".")[-1]: Path(self.get_ext_fullpath(e.name)).absolute() for e in self.extensions}
        folder = self.object_folder()
        for path in (folder, *(output.parent for output in outputs.values())):
            path.mkdir(parents=True, exist_ok=True)
        rules = NinjaFile()
        cuda_status = self.write_rules(rules, **outputs)
        (folder / "build.ninja").write_text("\n".join([*rules.lines, ""]))
        subprocess.run([find_ninja(), "-C", folder, *options], check=True)
        print(f"CUDA kernels: {cuda_status}.")

    def object_folder(self):
        """Where the object files are.

        setuptools builds an editable installation in a temporary folder. Here it has the folder of
        `setup.py build_ext`, so that the next build compiles only what has changed.
        """
        if self.editable_mode:
            return ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
        return Path(self.build_temp).absolute()

    def write_rules(self, rules, _native, _numpy):
        """Writes every build step. Returns a message about the CUDA kernels."""
        cxx, common = quoted(compiler()), f"{FLAGS} {os.environ.get('CXXFLAGS', '')}".replace("$", "$$")
        rules.rule("compile", f"{cxx} {common} $extra -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        rules.rule("link", f"{cxx} -shared $in -o $out $extra")

        def compile(source, name, extra):
            return rules.build(f"{name}.o", "compile", [ROOT / "csrc" / source], extra)

        sets = INSTRUCTION_SETS[platform.machine()]
        core = []
        for isa, flags in sets.items():
            for kernel in KERNELS:
                core += compile(f"cpu/{kernel}.cpp", f"{kernel}_{isa}", [*flags.split(), f"-DDISSIM_ISA={isa}"])
        rows = "".join(f"row({isa})" for isa in sets)
        for source in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
            if source.stem not in KERNELS:  # sources for all instruction sets are compiled once
                core += compile(f"cpu/{source.name}", source.stem, [f"-DDISSIM_ISAS(row)={rows}"])
        self.write_numpy(rules, compile, core, _numpy)
        return self.write_native(rules, compile, core, _native)

    def write_native(self, rules, compile, core, output):
        """Writes the build steps of _native.so. Returns a message about the CUDA kernels."""
        import torch

        folder = Path(torch.__file__).parent
        # -O1, because the bindings compute nothing. The target is torch 2.10, the oldest supported version, in the
        # form 0xMMmmpp0000000000.
        include = ["-O1", "-isystem", folder / "include", "-isystem", folder / "include/torch/csrc/api/include"]
        include += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
        # libtorch.so loads torch's CUDA functions. No symbol of it is used directly, so an option makes the linker
        # keep it.
        kept = "-Wl,--push-state,--no-as-needed,-ltorch,--pop-state"
        libraries = [f"-L{folder}/lib", kept, "-ltorch_cpu", "-lc10"]
        nvcc, reason = find_nvcc(torch)
        archs, skipped = cuda_archs(nvcc, torch) if nvcc else ("", "")
        objects = core + compile(
            "torch_bindings.cpp", "torch_bindings", [*include, define("DISSIM_CUDA_ARCHS", archs)]
        )
        if nvcc:
            objects += compile("torch_cuda_bindings.cpp", "torch_cuda_bindings", include)
            host = next(word for word in compiler() if Path(word).name not in ("ccache", "sccache", "distcc"))
            flags = ["-ccbin", host, "-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", *gencodes(archs)]
            rules.rule("nvcc", f"{quoted([nvcc, *flags])} -MD -MF $out.d -c $in -o $out", depfile="$out.d")
            for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
                objects += rules.build(f"{source.stem}_cuda.o", "nvcc", [source])
            libraries += cuda_libraries(nvcc)
        rules.build(output, "link", objects, libraries)
        if not nvcc:
            return f"not compiled, {reason}"
        return f"compiled for {archs} by {nvcc}" + (f"; skipped {skipped}" if skipped else "")

    def write_numpy(self, rules, compile, core, output):
        """Writes the build steps of the module _numpy, from the same object files."""
        import pybind11

        facts = {
            "DISSIM_VERSION": self.distribution.get_version(),
            "DISSIM_FLAGS": f"{FLAGS} {os.environ.get('CXXFLAGS', '')}".strip(),
            "DISSIM_KERNELS": " ".join(KERNELS),
        }
        include = ["-O1", "-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
        extra = [*include, *(define(name, text) for name, text in facts.items())]
        objects = core + compile("numpy_bindings.cpp", "numpy_bindings", extra)
        rules.build(output, "link", objects, ["-pthread"])


if __name__ == "__main__":
    # A source distribution has these files besides the packages. The build itself does not use this list.
    files = [*sorted(ROOT.glob("csrc/**/*.*")), *sorted(ROOT.glob("python/examples/*.py"))]
    sources = [str(path.relative_to(ROOT)) for path in files]
    setup(
        ext_modules=[Extension(f"dissim_kernels.{name}", sources) for name in ("_native", "_numpy")],
        cmdclass={"build_ext": NinjaBuild},
    )
