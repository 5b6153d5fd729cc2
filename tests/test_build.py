"""setup.py: what it builds and prints, with fake compilers and with the real nvcc."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import toolchain

ROOT = Path(__file__).parents[1]
USE = """
import torch, dissim_kernels
x = torch.randn(3, 4)
assert dissim_kernels.fused_dissim_score(x, x, x[0]).shape == (3, 3)
print(torch.ops.dissim_native.cuda_archs(), "|", dissim_kernels.unavailable_backends().get("cuda"))
"""
#: Compiles nothing, but logs its arguments and fails if a path with a space is split.
FAKE_COMPILER = """#!/bin/sh
echo "$@" >> "$0.log"
while [ $# -gt 0 ]; do
  case $1 in
    --version) echo "c++ 12.0"; exit ;;
    -c) [ -f "$2" ] || { echo "no source: $2"; exit 1; } ;;
    -isystem) [ -d "$2" ] || { echo "no folder: $2"; exit 1; } ;;
    -MF) : > "$2" ;;
    -o) : > "$2" ;;
  esac
  shift
done
"""
#: A fake nvcc of CUDA 12.6 that is a wrapper of a toolkit in another folder.
FAKE_NVCC = """#!/bin/sh
case $1 in
  --list-gpu-arch) for n in 50 75 80 86 90; do echo compute_$n; done; exit ;;
  --dryrun) echo '#$ TOP=/elsewhere/a toolkit' >&2
            echo '#$ LIBRARIES=  "-L/elsewhere/a toolkit/lib64/stubs" "-L/elsewhere/a toolkit/lib64"' >&2; exit ;;
esac
""" + FAKE_COMPILER.removeprefix("#!/bin/sh\n")


def run(*command, cwd=ROOT, **environment):
    settings = {**os.environ, **environment}
    return subprocess.run([sys.executable, *command], cwd=cwd, env=settings, capture_output=True, text=True)


@pytest.fixture
def setup_py():
    """setup.py as a module. It builds only when it is run."""
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    """A copy of the sources in a folder with a space in its name, and the fake compilers."""
    copy, tools = tmp_path / "a checkout", tmp_path / "some tools" / "bin"
    for name in ("csrc", "dissim_kernels", "python"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    tools.mkdir(parents=True)
    for name, script in (("c++", FAKE_COMPILER), ("nvcc", FAKE_NVCC)):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    return copy


def build(checkout, **environment):
    tools = checkout.parent / "some tools"
    settings = {"CXX": str(tools / "bin" / "c++"), "CUDA_HOME": str(tools), "FORCE_CUDA": "1", "CXXFLAGS": ""}
    settings |= {"TORCH_CUDA_ARCH_LIST": "", "MAX_JOBS": "", **environment}
    return run("setup.py", "-q", "build_ext", "--inplace", cwd=checkout, **settings)


def test_build_handles_paths_with_spaces_and_an_nvcc_wrapper(checkout):
    done = build(checkout, MAX_JOBS="3")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    tools = checkout.parent / "some tools" / "bin"
    assert done.stdout.splitlines()[-1] == (
        f"CUDA kernels: compiled for 8.0;9.0+PTX by {tools / 'nvcc'}; skipped 10.0, which this nvcc does not support."
    )
    assert (checkout / "dissim_kernels" / "_native.so").exists()
    calls = (tools / "c++.log").read_text()
    assert '-DDISSIM_CUDA_ARCHS="8.0;9.0+PTX"' in calls
    (link,) = (line for line in calls.splitlines() if "-shared" in line and "_native.so" in line)
    assert "-L/elsewhere/a toolkit/lib64 -L/elsewhere/a toolkit/lib -lcudart_static" in link
    assert "--no-as-needed,-ltorch," in link
    compiled = (tools / "nvcc.log").read_text().splitlines()
    assert len(compiled) == len(list(ROOT.glob("csrc/cuda/*.cu")))
    for call in compiled:
        assert f"-ccbin {tools / 'c++'} " in call and "code=sm_80 " in call and "code=compute_90 " in call
        assert "sm_100" not in call


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"FORCE_CUDA": "Off"}, "CUDA kernels: not compiled, FORCE_CUDA excludes them."),
        ({"TORCH_CUDA_ARCH_LIST": "7.5 8.6"}, "nvcc; skipped 7.5, because the kernels need 8.0."),
    ],
    ids=str,
)
def test_last_line_of_the_build_reports_cuda(checkout, environment, message):
    done = build(checkout, **environment)
    assert done.returncode == 0, done.stderr
    assert message in done.stdout.splitlines()[-1]


def test_old_compiler_raises_before_compiling(checkout):
    old = checkout.parent / "g++"
    old.write_text('#!/bin/sh\ncase $* in *--version) echo "g++ (Debian 10.2.1-6) 10.2.1" ;; *) exit 1 ;; esac\n')
    old.chmod(0o755)
    done = build(checkout, CXX=str(old))
    assert done.returncode and "g++ 12, clang++ 15 or newer, got g++ (Debian 10.2.1-6) 10.2.1." in done.stderr
    assert not list(checkout.glob("build/**/*.o"))


@pytest.mark.parametrize("system, machine", [("darwin", "arm64"), ("win32", "AMD64"), ("linux", "riscv64")])
def test_unsupported_systems_raise(setup_py, monkeypatch, system, machine):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(SystemExit, match=f"expected Linux on x86_64 or aarch64, got .* on {machine}"):
        setup_py.check_machine()


def test_missing_headers_and_modules_raise(setup_py, monkeypatch, tmp_path):
    setup_py.check_python()
    with monkeypatch.context() as patch:
        patch.setattr(setup_py.sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(SystemExit, match=rf"{tmp_path}, found no Python\.h.*apt install python3\.\d+-dev"):
            setup_py.check_python()
    with monkeypatch.context() as patch:
        patch.setattr("torch.__version__", type(sys.modules["torch"].__version__)("2.9.1"))
        with pytest.raises(SystemExit, match=r"expected torch 2\.10 or newer, got 2\.9\.1"):
            setup_py.check_python()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(SystemExit, match=r"expected torch in .*, found none\. Run `pip install 'torch>=2\.10'`"):
            setup_py.check_python()
        patch.setattr(importlib.util, "find_spec", lambda name: name if name == "torch" else None)
        with pytest.raises(SystemExit, match=r"expected pybind11 in .*, found none\. Run `pip install 'pybind11>="):
            setup_py.check_python()
    monkeypatch.setattr(setup_py.shutil, "which", lambda *_, **__: None)
    with pytest.raises(SystemExit, match=r"expected the program ninja in .*, found none\. Run `pip install ninja`"):
        setup_py.find_ninja()


@pytest.mark.parametrize("value", ["1", "true", "On", "YES", "0", "False", "off", "no", ""])
def test_valid_values_of_force_cuda(setup_py, monkeypatch, value):
    monkeypatch.setenv("FORCE_CUDA", value)
    assert setup_py.force_cuda() is {"1": True, "0": False, "": None}.get(value, value in ("true", "On", "YES"))


def test_invalid_environment_variables_raise(setup_py, monkeypatch):
    for name, value, function, message in (
        ("FORCE_CUDA", "maybe", setup_py.force_cuda, "expected 1, true, on or yes, or 0, .* got 'maybe'"),
        ("MAX_JOBS", "0", setup_py.jobs, "expected how many compilers to run at once, such as 4, got '0'"),
        ("CXX", "no-such", setup_py.check_compiler, r"expected g\+\+ 12, clang\+\+ 15 or newer, got none"),
    ):
        monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit, match=f"{name}.*{message}"):
            function()
    monkeypatch.setenv("MAX_JOBS", "3")
    assert setup_py.jobs() == ["-j3"]


def test_missing_nvcc_is_reported(setup_py, monkeypatch):
    cuda = SimpleNamespace(__version__="2.14.1", version=SimpleNamespace(cuda="13.0"))
    monkeypatch.setattr(setup_py.shutil, "which", lambda *_, **__: None)
    monkeypatch.delenv("FORCE_CUDA", raising=False)
    assert setup_py.find_nvcc(cuda) == (
        None,
        "nvcc was not found in CUDA_HOME/bin, CUDA_PATH/bin, on PATH or in /usr/local/cuda/bin",
    )
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match=r"FORCE_CUDA: nvcc was not found .* Install the CUDA toolkit"):
        setup_py.find_nvcc(cuda)


def test_lists_of_architectures(setup_py, monkeypatch):
    monkeypatch.setattr(setup_py, "nvcc_output", lambda *_: "compute_80\ncompute_86\ncompute_90\ncompute_100\n")
    cuda = SimpleNamespace(device_count=lambda: 2, get_device_capability=lambda i: (8, 6 - 6 * i))

    def archs(setting):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", setting)
        return setup_py.cuda_archs("nvcc", SimpleNamespace(cuda=cuda))[0]

    assert archs("") == setup_py.CUDA_ARCHS
    assert archs("Turing;Ampere Hopper") == "8.0;8.6+PTX;9.0+PTX"
    assert archs("9.0a;10.0f") == "9.0a;10.0f"
    assert archs("native") == "8.0;8.6"
    with pytest.raises(SystemExit, match="got 'hopper' in it"):
        archs("9.0;hopper")
    with pytest.raises(SystemExit, match=r"got '7.5\+PTX'\. Skipped: 7.5, because the kernels need 8.0"):
        archs("7.5+PTX")
    assert setup_py.gencodes("9.0a;10.0+PTX") == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]


@pytest.mark.skipif(
    toolchain.unsupported_reason("nvcc") is not None, reason=str(toolchain.unsupported_reason("nvcc"))
)
def test_forced_cuda_kernels_load_with_a_torch_without_cuda(tmp_path):
    """For one architecture; the budgets compile the others. Reuses the CPU objects of the last build."""
    for objects in (ROOT / "build").glob("temp.*"):
        shutil.copytree(objects, tmp_path / "temp", dirs_exist_ok=True)
    folders = ["--build-temp", str(tmp_path / "temp"), "--build-lib", str(tmp_path)]
    home = {"CUDA_HOME": str(toolchain.toolkit())}
    done = run("setup.py", "-q", "build", *folders, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0", **home)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert b"\0libtorch.so\0" in (tmp_path / "dissim_kernels" / "_native.so").read_bytes()
    done = run("-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})" + USE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("9.0 | ") and "on 'cpu'" in done.stdout


def test_a_source_distribution_has_every_source_and_no_test(tmp_path):
    """Most tests need files that it does not have, such as other modules of tests/."""
    done = run("setup.py", "-q", "sdist", "--dist-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    patterns = "csrc/**/*.*", "dissim_kernels/**/*.py", "python/**/*.py"
    sources = [path for pattern in patterns for path in ROOT.glob(pattern)]
    assert {str(path.relative_to(ROOT)) for path in sources} | {"setup.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.parametrize("skips", ["def test(): pytest.skip('absent')", "pytest.importorskip('no_such_module')"])
def test_skipped_tests_fail_in_make_compat(tmp_path, skips):
    (tmp_path / "test_it.py").write_text(f"import pytest\n{skips}\n")
    done = run("-m", "pytest", "-p", "no_skips", "-n2", "test_it.py", cwd=tmp_path, PYTHONPATH=str(ROOT / "tests"))
    assert done.returncode == 1 and "must not skip here" in done.stdout + done.stderr
