"""Every instruction set that this machine supports: it is compiled, can be selected, and passes the tests."""

import os
import shutil

import pytest
import torch
from instruction_sets import HERE, PACKAGE, SETS, check_operators, run
from native_check import RIGHT, no_emulator, run_neon

from dissim_kernels.backends import native


def test_best_instruction_set_is_chosen():
    assert torch.ops.dissim_native.isa() == os.environ.get("DISSIM_ISA", HERE[0])
    assert {name.strip("[]") for name in SETS} in ({"avx512", "avx2", "plain"}, {"neon"}, {"plain"})


@pytest.mark.parametrize("name", HERE[1:] or HERE)
def test_every_other_instruction_set_passes_the_same_tests(name):
    """All tests run with the best one. tests/stress/ poisons its memory as well."""
    check_operators(name)


@pytest.mark.parametrize("name", ["sse9", *(name.strip("[]") for name in SETS if name not in HERE)])
def test_unsupported_instruction_set_raises_with_the_choices(name):
    script = "import torch, dissim_kernels as d; x = torch.ones(2, 3); d.fused_dissim_score(x, x, x[0])"
    done = run("-c", script, DISSIM_ISA=name)
    assert done.returncode and "RuntimeError" in done.stderr and "DISSIM_ISA" in done.stderr
    assert name in done.stderr.splitlines()[-1] + done.stderr


def test_backend_of_an_unsupported_instruction_set_is_not_available():
    script = (
        "import dissim_kernels as d; from dissim_kernels.__main__ import facts\n"
        "print(d.available_backends(), d.unavailable_backends()['cpu'], facts()['instruction set'], sep='|')"
    )
    done = run("-c", script, DISSIM_ISA="sse9")
    available, reason, chosen = done.stdout.strip().split("|")
    assert "'cpu'" not in available and "reference" in available
    names = ", ".join(HERE)
    expected = f"DISSIM_ISA: expected one of the instruction sets that this machine runs ({names}), got 'sse9'. Unset"
    assert reason.startswith(expected) and chosen == f"none (of {' '.join(SETS)})"


def test_operators_raise_after_the_name_was_removed():
    """The set is chosen once, so the error cannot tell the name any more."""
    script = (
        "import os, torch, dissim_kernels as d; d.available_backends(); del os.environ['DISSIM_ISA']\n"
        "x = torch.ones(1, 2, 3)\n"
        "torch.ops.dissim_native.score(x, x, x[0, :1], None, torch.empty(1, 1, 2, 2))"
    )
    done = run("-c", script, DISSIM_ISA="sse9")
    assert "RuntimeError" in done.stderr and "got another one" in done.stderr


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
