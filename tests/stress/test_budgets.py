"""Every GPU kernel stays within its budget on the architectures that tests/test_sass.py leaves out."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
import test_sass

from bench.budgets import ARCHITECTURES, BUDGETS

OTHERS = [arch for arch in ARCHITECTURES if arch != test_sass.ARCH]


@pytest.mark.parametrize("arch", OTHERS)
@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: budget.name)
def test_a_kernel_keeps_its_budget(budget, arch):
    test_sass.test_a_kernel_keeps_its_budget(budget, arch)


@pytest.mark.parametrize("arch", OTHERS)
@pytest.mark.parametrize("variant", test_sass.VARIANTS)
def test_logsumexp_and_rank_cost_at_most_a_tenth_more_than_topk(variant, arch):
    test_sass.test_logsumexp_and_rank_cost_at_most_a_tenth_more_than_topk(variant, arch)


@test_sass.needs_compiler
@pytest.mark.parametrize("arch", OTHERS)
@pytest.mark.parametrize("stem", test_sass.STEMS)
def test_small_kernels_beside_the_main_one_do_not_spill(stem, arch):
    test_sass.test_small_kernels_beside_the_main_one_do_not_spill(stem, arch)
