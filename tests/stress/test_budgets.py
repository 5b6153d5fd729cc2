"""Every GPU kernel stays within its budget on the architectures that tests/test_sass.py leaves out."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
import kernel_budgets

each_arch = pytest.mark.parametrize("arch", kernel_budgets.LONG)


@each_arch
@kernel_budgets.each_budget
def test_a_kernel_keeps_its_budget(budget, arch):
    kernel_budgets.check_budget(budget, arch)


@each_arch
@kernel_budgets.each_variant
def test_logsumexp_and_rank_cost_at_most_a_tenth_more_than_topk(variant, arch):
    kernel_budgets.check_cost_is_that_of_topk(variant, arch)


@kernel_budgets.needs_compiler
@each_arch
@kernel_budgets.each_file_of_small_kernels
def test_small_kernels_beside_the_main_one_do_not_spill(stem, arch):
    kernel_budgets.check_small_kernels_do_not_spill(stem, arch)
