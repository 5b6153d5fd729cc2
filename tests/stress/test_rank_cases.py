"""1,000 drawn cases of fused_dissim_rank for each backend, equal to a full sort in float64."""

import sys
from pathlib import Path

import hypothesis.strategies as draw
import pytest
from hypothesis import given, settings

from dissim_kernels import testing

sys.path.append(str(Path(__file__).parents[1]))
from rank_cases import check_drawn_case


@pytest.mark.parametrize("backend", testing.runnable_backends())
@settings(max_examples=1000, deadline=None)
@given(data=draw.data())
def test_ranks_of_a_full_sort(backend, data):
    check_drawn_case(data, backend, max_references=600)
