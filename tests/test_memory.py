"""Peak memory beyond the inputs, of a fresh process: what the docstrings promise, in bytes by formula."""

import json
import os
import subprocess
import sys

import pytest

from dissim_kernels import testing as judge

#: Allocator slack, thread stacks and code pages that a first call touches.
SLACK = 6 << 20
FLOAT = 4

PROBE = """
import json, resource, sys, torch
import dissim_kernels as d
from dissim_kernels.backends import reference as chunked
what, backend, n, m, dim, chunk = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
chunked.CHUNK = chunk

def inputs(n, m, dim):
    torch.manual_seed(0)
    x = [torch.randn(n, dim), torch.randn(m, dim), -torch.rand(dim), torch.tensor(0.5)]
    return [t.requires_grad_(what in ("backward", "hinge")) for t in x], (torch.arange(n) % 7, torch.arange(m) % 7)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

def steps(x, sides):
    if what == "topk":
        return lambda: d.fused_dissim_topk(*x, k=5, backend=backend)
    if what == "certified":
        made = d.quantise_references(x[1], x[2])
        return lambda: d.certified_dissim_topk(*x, k=5, quantised=made)
    if what == "hinge":
        return lambda: d.fused_dissim_hinge_loss(*x, *sides, backend=backend).backward()
    if what == "plain":  # the definition, to prove that this probe sees what it should
        return lambda: torch.nn.functional.linear((x[0][:, None] - x[1]).abs(), x[2])
    if what == "matrix":
        return lambda: d.fused_dissim_score(*x, backend=backend).topk(5)
    scores = d.fused_dissim_score(*x, backend=backend)
    upstream = torch.ones_like(scores)
    if what == "backward":
        return lambda: scores.backward(upstream)
    del scores, upstream
    return lambda: d.fused_dissim_score(*x, backend=backend)

steps(*inputs(40, 300, 40))()  # threads, code and operators are loaded
run = steps(*inputs(n, m, dim))
resident = int(open("/proc/self/statm").read().split()[1]) << 12
filler = torch.zeros(max(0, peak() - resident) // 4)  # reach the old peak, so that whatever follows raises it
before = peak()
run()
print(json.dumps(peak() - before))
"""


def extra_memory(what, backend, n, m, dim, chunk=1 << 18):
    """Bytes by which one call raises the peak of its process."""
    settings = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_THRESHOLD_": "65536"}
    arguments = [what, backend, *map(str, (n, m, dim, chunk))]
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


backends = pytest.mark.parametrize("backend", judge.runnable_backends())


def test_forward_is_the_output_and_packed_rows():
    n = m = 2048
    dim = 512
    assert extra_memory("forward", "cpu", n, m, dim) <= FLOAT * (n * m + 2 * (n + m) * dim) + SLACK


def test_backward_is_four_times_the_rows():
    n = m = 2048
    dim = 512
    assert extra_memory("backward", "cpu", n, m, dim) <= FLOAT * 4 * (n + m) * dim + SLACK


def test_the_reference_keeps_to_its_blocks():
    n, m, dim, chunk = 512, 512, 128, 1 << 18
    assert extra_memory("forward", "reference", n, m, dim, chunk) <= FLOAT * (n * m + 4 * chunk) + SLACK
    assert extra_memory("backward", "reference", n, m, dim, chunk) <= FLOAT * (2 * (n + m) * dim + 6 * chunk) + SLACK


@backends
@pytest.mark.parametrize("what", ["topk", "hinge"])
def test_search_and_loss_never_hold_a_matrix_of_scores(what, backend):
    """N x M floats would be four times the limit; hinge holds one bit a pair, and a copy in backward."""
    n, m, dim = 2048, 8192, 2
    assert extra_memory(what, backend, n, m, dim) <= FLOAT * n * m // 4


def test_the_certified_search_keeps_lists_of_candidates_only():
    """4 dimensions, where quantised scores tie by the thousand: lists overflow and references are scanned again."""
    n, m = 1024, 65536
    lists = 8 * (1 << 22)  # kMostKept of csrc/cpu/certified.cpp
    assert FLOAT * n * m > 4 * (lists + SLACK)
    assert extra_memory("certified", "cpu", n, m, 4) <= 1.25 * lists + SLACK


@pytest.mark.parametrize(("what", "sizes", "least"), [("plain", (256, 256, 512), 256 * 256 * 512),
                                                      ("matrix", (4096, 4096, 4), 4096 * 4096)])  # fmt: skip
def test_the_probe_sees_what_these_tests_forbid(what, sizes, least):
    assert extra_memory(what, "cpu", *sizes) >= FLOAT * least
