"""The peak memory of calls, measured in a separate process, and the bounds of the docstrings.

`measured` runs this file as that process, which prints the bytes of each case.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

MIB = 1 << 20
#: Labels in a call of rank.
RANK_CLASSES = 100


@dataclasses.dataclass(frozen=True)
class Case:
    """A call: forward, backward, topk, hinge, hinge_backward, logsumexp, logsumexp_backward, rank, quantized_topk,
    clustered_topk, numpy_score or numpy_topk."""

    operation: str
    query: int
    reference: int
    dim: int
    dtype: str = "float32"
    threads: int = 1
    batch: int = 1
    heads: int = 1
    k: int = 5
    active: float = 1.0  # hinge_backward: the fraction of active pairs; logsumexp_backward: all, or few if below 1

    def with_threads(self, threads: int) -> Case:
        return dataclasses.replace(self, threads=threads)

    @property
    def item(self) -> int:
        return {"float64": 8, "float32": 4}.get(self.dtype, 2)

    @property
    def values(self) -> int:
        """Bytes of (N + M) D values."""
        return (self.query + self.reference) * self.dim * self.item

    @property
    def results(self) -> int:
        """Bytes of the results. The scores of a top-k exist in the accumulator dtype and in their own."""
        pairs, acc = self.query * self.reference, max(4, self.item)
        if self.operation in ("forward", "numpy_score"):
            return self.batch * self.heads * pairs * self.item
        if self.operation.endswith("backward"):
            return self.batch * self.values + self.heads * self.dim * (acc + self.item)
        if self.operation in ("hinge", "logsumexp"):
            return pairs // 8 + self.query * (2 * acc + 1)
        if self.operation == "rank":  # for each match, some integers of lists and of their order
            return 200 * (pairs // RANK_CLASSES + self.query)
        return self.query * self.k * (8 + acc + self.item)

    @property
    def allowed(self) -> int:
        """The maximum of bytes besides the inputs."""
        rows = 3 if self.operation.endswith("backward") else 2
        candidates = 32 * MIB if self.operation == "quantized_topk" else 0
        pivot_scores = self.values // 2 + 2 * MIB if self.operation == "clustered_topk" else 0
        return self.results + rows * self.values + candidates + pivot_scores + 16 * MIB


def measured(cases: list[Case]) -> list[int]:
    """The bytes by which each call raised the peak, in one process."""
    settings = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_THRESHOLD_": "65536"}
    given = json.dumps([dataclasses.asdict(case) for case in cases])
    done = subprocess.run([sys.executable, __file__], input=given, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def too_large(cases: list[Case]) -> list[str]:
    """A message for each case that takes more than is allowed."""
    return [
        f"{case}: {found / MIB:.1f} MiB, allowed {case.allowed / MIB:.1f}"
        for case, found in zip(cases, measured(cases), strict=True)
        if found > case.allowed
    ]


def call_of(case: Case):
    """The call, with its inputs."""
    import torch

    import dissim_kernels
    import dissim_kernels.numpy

    torch.manual_seed(0)
    torch.set_num_threads(case.threads)
    torch.ones(10**6).exp()  # starts the threads
    dtype, leading = getattr(torch, case.dtype), () if case.batch == 1 else (case.batch,)
    query = torch.randn(*leading, case.query, case.dim, dtype=dtype)
    reference = torch.randn(*leading, case.reference, case.dim, dtype=dtype)
    weight = -torch.rand(*(() if case.heads == 1 else (case.heads,)), case.dim, dtype=dtype)
    inputs, labels = (query, reference, weight), (torch.arange(case.query) % 7, torch.arange(case.reference) % 7)
    if case.operation == "numpy_score":
        arrays = [x.numpy() for x in inputs]
        return lambda: dissim_kernels.numpy.score(*arrays, threads=case.threads)
    if case.operation == "numpy_topk":
        arrays = [x.numpy() for x in inputs]
        return lambda: dissim_kernels.numpy.topk(*arrays, k=case.k, threads=case.threads)
    if case.operation == "forward":
        return lambda: dissim_kernels.fused_dissim_score(*inputs)
    if case.operation == "topk":
        return lambda: dissim_kernels.fused_dissim_topk(*inputs, k=case.k)
    if case.operation == "quantized_topk":
        codes = dissim_kernels.quantize_references(reference, weight)
        return lambda: dissim_kernels.fused_dissim_topk(*inputs, k=case.k, quantized=codes)
    if case.operation == "clustered_topk":
        clusters = dissim_kernels.cluster_references(reference, weight)
        return lambda: dissim_kernels.fused_dissim_topk(*inputs, k=case.k, clusters=clusters)
    if case.operation == "hinge":
        return lambda: dissim_kernels.fused_dissim_hinge_loss(*inputs, None, *labels, num_hard_negatives=case.k)
    if case.operation == "logsumexp":
        return lambda: dissim_kernels.fused_dissim_logsumexp(*inputs, among="all")
    if case.operation == "rank":
        query_labels, reference_labels = (torch.arange(len(x)) % RANK_CLASSES for x in inputs[:2])
        return lambda: dissim_kernels.fused_dissim_rank(
            *inputs, query_labels=query_labels, reference_labels=reference_labels
        )
    for tensor in inputs:
        tensor.requires_grad_()
    if case.operation == "plain_backward":  # the definition, to test this probe
        scores = torch.nn.functional.linear((query[:, None] - reference).abs(), weight)
        upstream = torch.ones_like(scores)
        return lambda: scores.backward(upstream)
    if case.operation == "backward":
        scores = dissim_kernels.fused_dissim_score(*inputs)
        upstream = torch.ones_like(scores)
        return lambda: scores.backward(upstream)
    if case.operation == "logsumexp_backward":
        scale = 0.1 / case.dim if case.active == 1 else 100.0
        sums = dissim_kernels.fused_dissim_logsumexp(*inputs, scale=scale, among="all")
        return lambda: sums.backward(torch.ones_like(sums))
    scores = dissim_kernels.fused_dissim_score(query[:50], reference[:50], weight).flatten().float()
    bias = -1 - scores.quantile(1 - case.active).item()  # negatives are active where score + bias > -1
    loss = dissim_kernels.fused_dissim_hinge_loss(*inputs, bias, *labels, margin=1)
    return lambda: loss.backward(torch.ones_like(loss))


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status: VmRSS in use, VmHWM at the peak."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10


def main() -> None:
    found = []
    for given in json.load(sys.stdin):
        case = Case(**given)
        small = {"query": 30, "reference": 40, "dim": 16, "batch": 1, "k": 5}
        call_of(dataclasses.replace(case, **small))()  # loads the code
        call = call_of(case)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = status("VmRSS")
        result = call()
        found.append(status("VmHWM") - before)
        del call, result
    print(json.dumps(found))


if __name__ == "__main__":
    main()
