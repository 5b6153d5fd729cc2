"""Every instruction set that this machine supports: it is compiled, can be selected, and passes the tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from native_check import RIGHT, no_emulator, run_neon

import dissim_kernels
from dissim_kernels.backends import native

PACKAGE = Path(dissim_kernels.__file__).parent
TESTS = Path(__file__).parent
SETS = torch.ops.dissim_native.isas().split()
HERE = [name for name in SETS if not name.startswith("[")]
#: New heap memory has bytes of 0x7f, a huge number or NaN in every format, so that unwritten scratch is found.
POISON = {"MALLOC_PERTURB_": "128"}


def run(*arguments, root=PACKAGE.parent, **environment):
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE", **environment}
    return subprocess.run(
        [sys.executable, *arguments], env=settings, cwd=root, capture_output=True, text=True, timeout=300
    )


def test_best_instruction_set_is_chosen():
    assert native.isa() == os.environ.get("DISSIM_ISA", HERE[0])
    assert {name.strip("[]") for name in SETS} in ({"avx512", "avx2", "plain"}, {"neon"}, {"plain"})


@pytest.mark.parametrize("name", HERE)
def test_every_supported_instruction_set_passes_the_same_tests(name):
    """Scores and gradients of edge-case inputs, all options of the hinge loss, top-k of ties, codes."""
    selected = "((the_definition or ties or gradients or ranks) and cpu)"
    selected += " or (clusters and (few_rows or bounds or ties))"
    selected += " or (quantized_topk and (ties or every or edge_case or filters))"
    files = [str(TESTS / f"test_{stem}.py") for stem in ("score", "topk", "hinge", "quantized_topk", "clusters")]
    files += [str(TESTS / f"test_{stem}.py") for stem in ("logsumexp", "rank")]
    script = (
        "import sys, pytest; from dissim_kernels.backends import native; print(native.isa()); sys.exit(pytest.main())"
    )
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-k", selected, *files]
    done = run("-c", script, *arguments, DISSIM_ISA=name, **POISON)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.stdout.startswith(name + "\n") and done.stdout.count(".") > 100


@pytest.mark.parametrize("name", ["sse9", *(name.strip("[]") for name in SETS if name not in HERE)])
def test_unsupported_instruction_set_raises_with_the_choices(name):
    script = "import torch, dissim_kernels as d; x = torch.ones(2, 3); d.fused_dissim_score(x, x, x[0])"
    done = run("-c", script, DISSIM_ISA=name)
    assert done.returncode and "RuntimeError" in done.stderr and "DISSIM_ISA" in done.stderr
    assert name in done.stderr.splitlines()[-1] + done.stderr


@pytest.mark.parametrize(
    ("library", "reason"), [(None, "was not built"), (b"no library at all", "does not load with torch")]
)
def test_missing_library_raises_with_build_instructions(library, reason, tmp_path):
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if library:
        (tmp_path / PACKAGE.name / native.LIBRARY.name).write_bytes(library)
    script = (
        "import torch, dissim_kernels as d; x = torch.ones(2, 3)\n"
        "print(d.unavailable_backends()['cpu'])\n"
        "print(d.fused_dissim_score(x, x, x[0], backend='reference').sum())\n"
        "d.fused_dissim_score(x, x, x[0])"
    )
    done = run("-c", script, root=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "tensor(0.)" in done.stdout
    for text in (done.stdout, last):
        assert reason in text and "pip install" in text
    assert "backend 'cpu' cannot run this call" in last


@pytest.mark.skipif(no_emulator() is not None, reason=str(no_emulator()))
def test_neon_kernels_under_an_emulator(tmp_path):
    """With less optimization, which compiles faster."""
    assert run_neon(tmp_path, "-O1") == RIGHT
