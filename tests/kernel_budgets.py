"""Checks of the GPU kernels' machine code: tests/test_sass.py for one architecture, tests/stress/ for the others."""

from functools import cache

import pytest

from bench import sass, toolchain
from bench.budgets import ARCHITECTURES, BUDGETS
from bench.machine_code import read

#: The architecture of the short tests. To compile all kernels for one takes minutes.
SHORT = 90
LONG = [arch for arch in ARCHITECTURES if arch != SHORT]
MISSING = toolchain.unsupported_reason("nvcc", "cuobjdump", "nvdisasm")
needs_compiler = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

each_budget = pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: budget.name)
each_variant = pytest.mark.parametrize(
    "variant", ["{} fp32", "{} fp64", "{} fp16", "{} bf16", "triton {} fp32", "triton {} fp64"]
)
#: Files with kernels that merge or clear. These have no main loop and no row in the table.
each_file_of_small_kernels = pytest.mark.parametrize("stem", ["logsumexp", "rank", "listed_scores"])


def check_budget(budget, arch):
    violations, _ = _counted(budget.name, arch)
    assert violations == []


def check_cost_is_that_of_topk(variant, arch):
    """At most a tenth more."""
    for operation in ("logsumexp", "rank"):
        (_, slots), (_, slots_of_topk) = (_counted(variant.format(name), arch) for name in (operation, "topk"))
        assert slots <= 1.1 * slots_of_topk


def check_small_kernels_do_not_spill(stem, arch):
    kernels = read(toolchain.compile_cuda(toolchain.ROOT / "csrc" / "cuda" / f"{stem}.cu", arch))
    assert kernels and not [kernel.name for kernel in kernels if kernel.spills or kernel.local]


@cache
def _counted(name, arch):
    """The violations of a row's kernel, and its slots per element."""
    (budget,) = (row for row in BUDGETS if row.name == name)
    if reason := toolchain.unsupported_reason(*budget.needs):
        pytest.skip(reason)
    count = sass.count(budget, arch)
    return count.violations, count.loop.slots_per_element
