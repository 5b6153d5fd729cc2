"""What setup.py builds: CUDA's kernels beside a torch without CUDA, and a source distribution that has it all."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from bench import toolchain

ROOT = Path(__file__).parents[1]
USE = """
import torch, dissim_kernels
x = torch.randn(3, 4)
assert dissim_kernels.fused_dissim_score(x, x, x[0]).shape == (3, 3)
print(torch.ops.dissim_native.cuda_archs(), "|", dissim_kernels.available_backends()["cuda"])
"""


def run(*command, **environment):
    settings = {**os.environ, **environment}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=settings, capture_output=True, text=True)


@pytest.mark.skipif(toolchain.why_not("nvcc") is not None, reason=str(toolchain.why_not("nvcc")))
def test_forced_cuda_kernels_load_beside_a_torch_without_cuda(tmp_path):
    """One architecture: the budgets compile the others. The CPU's objects are taken from the last build, if any."""
    for objects in (ROOT / "build").glob("temp.*"):
        shutil.copytree(objects, tmp_path / "temp", dirs_exist_ok=True)
    folders = ["--build-temp", str(tmp_path / "temp"), "--build-lib", str(tmp_path)]
    toolkit = toolchain.tool("nvcc").parents[1]
    home = {"CUDA_HOME": str(toolkit)} if (toolkit / "nvvm").exists() else {}
    done = run("setup.py", "-q", "build", *folders, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0", **home)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    done = run("-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})" + USE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("9.0 | ") and "on 'cpu'" in done.stdout


def test_an_architecture_that_is_none_is_refused(tmp_path):
    folders = ["--build-temp", str(tmp_path), "--build-lib", str(tmp_path)]
    done = run("setup.py", "-q", "build", *folders, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0;hopper")
    assert done.returncode and ("'hopper'" in done.stderr or "expected nvcc" in done.stderr)


def test_a_source_distribution_has_every_source(tmp_path):
    done = run("setup.py", "-q", "sdist", "--dist-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    sources = [*ROOT.glob("csrc/**/*.*"), *ROOT.glob("dissim_kernels/**/*.py"), *ROOT.glob("python/**/*.py")]
    assert {str(path.relative_to(ROOT)) for path in sources} | {"setup.py", "pyproject.toml"} <= names
