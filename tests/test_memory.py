"""Memory: the peak of a call stays within the bounds of the docstrings, and threads keep little between calls.

A process with too little memory or too few threads gets an error or the right result.

tests/stress/test_memory_extremes.py tries many more shapes.
"""

import itertools
import os
import re
import subprocess
import sys

import pytest
import torch
from memory_probe import MIB, Case, too_large

import dissim_kernels
from dissim_kernels import testing

#: Allocator overhead, thread stacks and code pages of a first call.
SLACK = 6 << 20
FLOAT = 4

#: Prints the answer to each line of its input from a fork, which has run nothing and has imported everything.
PROBE = """
import os, resource, sys, torch
import dissim_kernels as d
from dissim_kernels.backends import reference as chunked

def inputs(what, n, m, dim):
    torch.manual_seed(0)
    x = [torch.randn(n, dim), torch.randn(m, dim), -torch.rand(dim), torch.tensor(0.5)]
    sides = torch.arange(n) % 7, torch.arange(m) % 7
    if what == "rank":
        sides = torch.arange(n) % (m // 10), torch.arange(m) // 10  # ten matches for a query
    return [t.requires_grad_(what in ("backward", "hinge", "logsumexp")) for t in x], sides

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

def steps(what, backend, x, sides):
    if what == "topk":
        return lambda: d.fused_dissim_topk(*x, k=5, backend=backend)
    if what == "quantized_topk":
        made = d.quantize_references(x[1], x[2])
        return lambda: d.fused_dissim_topk(*x, k=5, quantized=made)
    if what == "hinge":
        return lambda: d.fused_dissim_hinge_loss(*x, *sides, backend=backend).backward()
    labels = dict(query_labels=sides[0], reference_labels=sides[1])
    if what == "logsumexp":  # the scale is so small that backward needs all pairs
        return lambda: d.fused_dissim_logsumexp(*x, scale=0.01, **labels, backend=backend).sum().backward()
    if what == "rank":
        return lambda: d.fused_dissim_rank(*x, **labels, backend=backend)
    if what == "matrix":  # stores the scores, to test the probe itself
        return lambda: d.fused_dissim_score(*x, backend=backend).topk(5)
    scores = d.fused_dissim_score(*x, backend=backend)
    upstream = torch.ones_like(scores)
    if what == "backward":
        return lambda: scores.backward(upstream)
    del scores, upstream
    return lambda: d.fused_dissim_score(*x, backend=backend)

def extra_memory(what, backend, n, m, dim, chunk):
    chunked.CHUNK = chunk
    steps(what, backend, *inputs(what, 40, 300, 40))()  # loads threads, code and operators
    run = steps(what, backend, *inputs(what, n, m, dim))
    resident = int(open("/proc/self/statm").read().split()[1]) << 12
    # Fills memory up to the old peak, so that every later allocation raises it.
    filler = torch.zeros(max(0, peak() - resident) // 4)
    before = peak()
    run()
    return peak() - before

for line in sys.stdin:
    what, backend, *sizes = line.split()
    if os.fork() == 0:
        print(extra_memory(what, backend, *map(int, sizes)), flush=True)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(1)
"""


@pytest.fixture(scope="module")
def probe():
    settings = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command, pipe = [sys.executable, "-c", PROBE], subprocess.PIPE
    with subprocess.Popen(command, env=settings, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def extra_memory(probe):
    """Bytes by which one call raises the peak of its process."""

    def measure(what, backend, n, m, dim, chunk=1 << 18):
        print(what, backend, n, m, dim, chunk, file=probe.stdin, flush=True)
        return int(probe.stdout.readline())

    return measure


backends = pytest.mark.parametrize("backend", testing.runnable_backends())


def test_forward_memory_is_the_output_and_packed_rows(extra_memory):
    n = m = 2048
    dim = 512
    assert extra_memory("forward", "cpu", n, m, dim) <= FLOAT * (n * m + 2 * (n + m) * dim) + SLACK


def test_backward_memory_is_four_times_the_rows(extra_memory):
    n = m = 2048
    dim = 512
    assert extra_memory("backward", "cpu", n, m, dim) <= FLOAT * 4 * (n + m) * dim + SLACK


def test_reference_backend_memory_is_limited_by_its_chunks(extra_memory):
    n, m, dim, chunk = 512, 512, 128, 1 << 18
    assert extra_memory("forward", "reference", n, m, dim, chunk) <= FLOAT * (n * m + 4 * chunk) + SLACK
    assert extra_memory("backward", "reference", n, m, dim, chunk) <= FLOAT * (2 * (n + m) * dim + 6 * chunk) + SLACK


@backends
@pytest.mark.parametrize("what", ["topk", "hinge", "logsumexp", "rank"])
def test_search_and_losses_never_store_the_score_matrix(what, backend, extra_memory):
    """N x M floats would be four times the limit. The losses store one bit per pair, and a copy in backward."""
    n, m, dim = 2048, 8192, 2
    assert extra_memory(what, backend, n, m, dim) <= FLOAT * n * m // 4


def test_the_probe_sees_a_score_matrix(extra_memory):
    assert extra_memory("matrix", "cpu", 2048, 8192, 2) >= FLOAT * 2048 * 8192


def test_logsumexp_memory_is_below_one_and_a_half_times_the_hinge(extra_memory):
    size = 512, 16_384, 256
    assert extra_memory("logsumexp", "cpu", *size) <= 1.5 * extra_memory("hinge", "cpu", *size)


def test_logsumexp_of_remembered_references_stores_no_score_matrix(extra_memory):
    """65,536 references: their gradients, the bits and a copy, and 8 MiB. N x M floats would be 64 MiB."""
    n, m, dim = 256, 65_536, 32
    assert extra_memory("logsumexp", "cpu", n, m, dim) <= FLOAT * m * dim + 2 * (n * m // 8) + (8 << 20)


def test_quantized_search_memory_is_its_candidate_lists(extra_memory):
    """Thousands of quantized scores tie in 4 dimensions, so that lists overflow and references are scanned again."""
    n, m = 1024, 65536
    lists = 32 << 20  # kMaxListBytes of csrc/cpu/quantized_topk.cpp
    assert FLOAT * n * m > 4 * (lists + SLACK)
    assert extra_memory("quantized_topk", "cpu", n, m, 4) <= 1.25 * lists + SLACK


#: Few and very long rows, many and very short ones, large k, batches, heads.
EXTREMES = (
    Case("forward", 2, 2, 1_000_000),
    Case("forward", 2, 2, 1_000_000, "float16"),
    Case("forward", 20, 40, 60_000, "bfloat16"),
    Case("forward", 130, 300, 4096),
    Case("forward", 600, 700, 128, "float64", batch=3),
    Case("forward", 17, 100, 20_000, heads=3),
    Case("backward", 2, 2, 1_000_000),
    Case("backward", 2, 2, 300_000, "float16"),
    Case("backward", 20, 40, 20_000, heads=3),
    Case("backward", 1, 1, 40_000, batch=64),
    Case("backward", 20_000, 3, 16),
    Case("topk", 9000, 1100, 4, "float16", k=1000),
    Case("topk", 20, 400, 40_000),
    Case("hinge", 9000, 1100, 4, k=1000),
    Case("hinge_backward", 20, 400, 40_000, active=0.02),
    Case("hinge_backward", 20, 400, 40_000),
    Case("logsumexp", 9000, 1100, 4),
    Case("logsumexp", 2, 2, 1_000_000, "float16"),
    Case("logsumexp_backward", 20, 400, 40_000, active=0.02),
    Case("logsumexp_backward", 20, 400, 40_000),
    Case("rank", 9000, 1100, 4),
    Case("rank", 20, 400, 40_000),
    Case("quantized_topk", 20, 30_000, 64, k=3000),
    Case("clustered_topk", 20, 400, 40_000, k=2),
    Case("clustered_topk", 3000, 20_000, 4, k=100),
    Case("numpy_score", 20, 40, 60_000),
    Case("numpy_topk", 3000, 1100, 4, k=1000),
)


def test_extreme_shapes_stay_below_the_memory_bounds():
    """With 64 threads. tests/stress/ takes 1, 2, 8 and 32 as well."""
    assert not too_large([case.with_threads(64) for case in EXTREMES])


def test_memory_probe_detects_a_gradient_for_every_pair():
    """The backward pass of the definition takes more than the allowed 4 (N + M) D values."""
    assert too_large([Case("plain_backward", 200, 200, 300)])


@pytest.mark.parametrize(
    ("n", "m", "dim"), [(40, 70, 20_000), (17, 17, 200_000), (3, 300, 30_000), (2000, 900, 3), (130, 300, 4100)]
)
def test_results_are_bit_identical_where_memory_limits_threads(n, m, dim):
    """With 64 threads, the memory bound reduces the references or dimensions per task, or the number of threads."""
    labels, found = (torch.arange(n) % 7, torch.arange(m) % 7), []
    inputs = testing.random_inputs((n, dim), (m, dim))
    query, reference, weight = (x.clone().requires_grad_() for x in inputs[:3])
    with torch.no_grad():
        reference[::9] = query[torch.arange(0, m, 9) % n]  # equal rows are rescored directly
    threads = torch.get_num_threads()
    try:
        for count in (1, 64):
            torch.set_num_threads(count)
            scores = dissim_kernels.fused_dissim_score(query, reference, weight)
            loss = dissim_kernels.fused_dissim_hinge_loss(
                query, reference, weight, None, *labels, num_hard_negatives=5
            )
            sums = dissim_kernels.fused_dissim_logsumexp(query, reference, weight, among="all")
            gradients = [torch.autograd.grad(x.sum(), (query, reference, weight)) for x in (scores, loss, sums)]
            best = dissim_kernels.fused_dissim_topk(query.detach(), reference.detach(), weight.detach(), k=min(m, 20))
            sides = {"query_labels": labels[0], "reference_labels": labels[1]}
            ranks = dissim_kernels.fused_dissim_rank(query.detach(), reference.detach(), weight.detach(), **sides)
            found.append([scores, loss, sums, *itertools.chain(*gradients), *best, ranks.ranks])
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


KEPT = """
import ctypes, torch, dissim_kernels as d, dissim_kernels.numpy as side
def calls():
    x = [torch.randn(*shape, requires_grad=True) for shape in ((1000, 64), (2000, 64), (64,))]
    labels = torch.arange(1000) % 5, torch.arange(2000) % 5
    d.fused_dissim_score(*x).sum().backward()
    for hard in (None, 2):
        d.fused_dissim_hinge_loss(*x, None, *labels, num_hard_negatives=hard).backward()
    d.fused_dissim_logsumexp(*x, among="all").sum().backward()
    with torch.no_grad():
        x = [t.detach() for t in x]
        d.fused_dissim_topk(*x, k=3)
        d.fused_dissim_rank(*x, query_labels=labels[0], reference_labels=labels[1])
        d.fused_dissim_topk(*x, k=3, quantized=d.quantize_references(*x[1:]))
        side.score(*(t.numpy() for t in x), threads=torch.get_num_threads())
def in_use():
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) << 12
torch.set_num_threads(1)
calls()
torch.set_num_threads(16)
torch.ones(10**6).exp()
before = in_use()
for _ in range(3):
    calls()
print(in_use() - before)
"""


def run(script, *arguments):
    """The output of a script. Memory that it frees is returned to the system."""
    settings = {
        **os.environ,
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
    }
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_memory_kept_between_calls_is_bounded():
    assert int(run(KEPT)) <= (2 + 8) * MIB


#: Each call, in a fork with `free_mib` MiB of address space left, returns the right result or raises.
LIMITED = """
import os, resource, sys, torch, dissim_kernels as d, dissim_kernels.numpy as side
threads, free_mib, names = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
torch.set_num_threads(1)  # threads do not survive a fork
x = [torch.randn(*shape, requires_grad=True) for shape in ((40, 20_000), (500, 20_000), (20_000,))]
short, labels = [t.detach()[..., :64].contiguous() for t in x], (torch.arange(40) % 5, torch.arange(500) % 5)
arrays, expected = [t.numpy() for t in short], d.fused_dissim_score(*short)
made = d.quantize_references(*short[1:])
scores, sums = d.fused_dissim_score(*x).sum(), d.fused_dissim_logsumexp(*x, scale=0.01, among="all").sum()
calls = {
    "forward": lambda: d.fused_dissim_score(*x),
    "backward": lambda: scores.backward(),
    "topk": lambda: d.fused_dissim_topk(*x, k=5),
    "hinge": lambda: d.fused_dissim_hinge_loss(*x, None, *labels, num_hard_negatives=2),
    "logsumexp": lambda: d.fused_dissim_logsumexp(*x, among="all"),
    "logsumexp_backward": lambda: sums.backward(),
    "rank": lambda: d.fused_dissim_rank(*x, query_labels=labels[0], reference_labels=labels[1]),
    "codes": lambda: d.quantize_references(*(t.detach() for t in x[1:])),
    "quantized_topk": lambda: d.fused_dissim_topk(*short, k=500, quantized=made),
    "numpy": lambda: side.score(*arrays, threads=threads),
    "threads": lambda: d.fused_dissim_score(*short),
}
for name in names:
    child = os.fork()
    if child == 0:
        torch.set_num_threads(threads)
        size = int(open("/proc/self/statm").read().split()[0]) << 12
        limit = size + (free_mib << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            result = calls[name]()
            if name in ("threads", "numpy"):
                assert torch.equal(torch.as_tensor(result), expected), "wrong scores"
            print(name, "returned", flush=True)
        except (RuntimeError, MemoryError) as error:
            print(name, type(error).__name__, *str(error).split()[:12], flush=True)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        print(name, "ended with", code, flush=True)
"""


def test_out_of_memory_raises():
    names = ("forward", "backward", "topk", "hinge", "logsumexp", "logsumexp_backward", "rank", "codes",
             "quantized_topk")  # fmt: skip
    lines = run(LIMITED, "1", "1", *names).splitlines()
    assert len(lines) == len(names)
    for line in lines:
        assert re.match(r"\w+ RuntimeError .*(memory|alloc)", line), lines


def test_result_is_right_if_threads_cannot_start():
    assert run(LIMITED, "64", "40", "numpy", "threads").splitlines() == ["numpy returned", "threads returned"]
