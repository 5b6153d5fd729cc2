"""Every benchmark size, and every formula that turns a time into a rate or a fraction of the peak.

One **element** is one term |q_d - r_d|: a query, a reference and a dimension. Rates are in Gelem/s, billions of
elements per second of the whole call. A training step (forward and backward) counts each element once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

#: Operation -> the loops of peak.cpp whose instructions it needs, and how often: for every element, and once more for
#: those of active pairs. "score" is max and fma (max form, E7) or, on other processors than x86, sub, and, fma (E1);
#: "backward" is sub, sign and two fma; "sad" is the sum of absolute differences of bytes and an add.
COSTS = {
    "score": {"score": (1, 0)},
    "score_backward": {"backward": (1, 0)},
    "score_step": {"score": (1, 0), "backward": (1, 0)},
    "topk": {"score": (1, 0)},
    "quantized_topk": {"sad": (1, 0)},
    "rank": {"score": (1, 0)},
    "hinge_backward": {"backward": (0, 1)},
    "hinge_step": {"score": (1, 0), "backward": (0, 1)},
    "logsumexp_backward": {"score": (0, 1), "backward": (0, 1)},
    "logsumexp_step": {"score": (1, 1), "backward": (0, 1)},
}


def gelem_per_s(rate: float) -> str:
    """Elements per second as Gelem/s with three digits."""
    return f"{rate / 1e9:.3g}" if rate < 1e12 else f"{rate / 1e9:,.0f}"


@dataclass(frozen=True)
class Case:
    """One size of one operation, and the numbers that follow from it."""

    name: str
    operation: str
    queries: int
    references: int
    dim: int
    dtype: str = "float32"
    k: int = 10  # topk, quantized_topk; rank: the matches of a query
    active: float = 1.0  # hinge, logsumexp: the fraction of pairs that backward needs
    quick: bool = False  # part of `--quick`, with fewer rows

    @property
    def elements(self) -> int:
        return self.queries * self.references * self.dim

    @property
    def bytes(self) -> int:
        """Memory traffic that no implementation avoids: each input is read once, each output is written once. The
        references of a quantized search are read as codes of one byte."""
        item, rows, pairs = ITEM_BYTES[self.dtype], self.queries + self.references, self.queries * self.references
        inputs, scores = rows * self.dim * item, pairs * item
        read = {
            "score": inputs,
            "score_backward": inputs + scores,
            "score_step": inputs + scores,
            "topk": inputs,
            "quantized_topk": self.references * self.dim + self.queries * self.dim * item,
            "rank": inputs + 8 * rows,
            "hinge_backward": inputs + 8 * rows + pairs // 8,
            "hinge_step": inputs + 8 * rows,
            "logsumexp_backward": inputs + pairs // 8,
            "logsumexp_step": inputs + 8 * rows,
        }[self.operation]
        return read + sum(self.results)

    @property
    def results(self) -> tuple[int, ...]:
        """Bytes of each tensor that a call returns, without the small ones."""
        item = ITEM_BYTES[self.dtype]
        scores = self.queries * self.references * item
        gradients = self.queries * self.dim * item, self.references * self.dim * item
        best = self.queries * self.k * item, self.queries * self.k * 8
        ranks = self.queries * self.k * 8, self.queries * self.k * 8
        return {
            "score": (scores,),
            "score_backward": gradients,
            "score_step": (scores, *gradients),
            "topk": best,
            "quantized_topk": best,
            "rank": ranks,
            "hinge_backward": gradients,
            "hinge_step": gradients,
            "logsumexp_backward": gradients,
            "logsumexp_step": gradients,
        }[self.operation]

    @property
    def costs(self) -> dict[str, float]:
        """How often each loop of peak.cpp runs for one element."""
        return {name: cost + self.active * more for name, (cost, more) in COSTS[self.operation].items()}

    @property
    def has_active_pairs(self) -> bool:
        """Whether backward needs a part of the pairs only: those inside the margin, or with a share of the row above
        rounding."""
        return self.operation.startswith(("hinge", "logsumexp"))

    @property
    def uses_tiles(self) -> bool:
        """Whether scores are computed in register tiles. Those of few queries are not (csrc/cpu/scan.h)."""
        return "score" in self.costs and self.queries > 16

    def limits(self, peaks: Mapping[str, float]) -> dict[str, float]:
        """Elements per second that arithmetic and memory allow (a roofline).

        peaks: "score", "backward", "sad" in elements and "memory" in bytes per second, measured on all threads.
        """
        arithmetic = 1 / sum(cost / peaks[name] for name, cost in self.costs.items())
        return {"arithmetic": arithmetic, "memory": peaks["memory"] * self.elements / self.bytes}

    def queries_within(self, rate: float, full_s: float, sampled_s: float) -> int:
        """The number of queries to measure a competitor on whose rate is about `rate` elements per second.

        All queries if they take at most `full_s` seconds, else a power of two that takes about `sampled_s` seconds.
        The rate hardly depends on the number of queries. The report states how many were measured.
        """
        seconds = self.elements / rate
        if seconds <= full_s:
            return self.queries
        return 2 ** max(0, int(math.log2(self.queries * sampled_s / seconds)))

    def with_active(self, fraction: float) -> Case:
        """The case with the measured fraction of active pairs, which its peak depends on."""
        return replace(self, active=fraction)

    def shrunk(self, max_elements: int) -> Case:
        """The case with its rows halved until it has at most this many elements."""
        case = self
        while case.elements > max_elements and max(case.queries, case.references) > 64:
            longer = "queries" if case.queries > case.references else "references"
            case = replace(case, **{longer: getattr(case, longer) // 2})
        return case


CASES = (
    Case("score fp32 4096", "score", 4096, 4096, 512, quick=True),
    Case("score fp32 2048", "score", 2048, 2048, 512),
    Case("score bf16 4096", "score", 4096, 4096, 512, "bfloat16"),
    Case("score fp16 4096", "score", 4096, 4096, 512, "float16"),
    Case("backward fp32 4096", "score_backward", 4096, 4096, 512, quick=True),
    Case("backward fp32 2048", "score_backward", 2048, 2048, 512),
    Case("forward+backward fp32 4096", "score_step", 4096, 4096, 512),
    Case("forward+backward fp32 2048", "score_step", 2048, 2048, 512),
    Case("top-10 of 200,000", "topk", 256, 200_000, 512, quick=True),
    Case("quantized top-10 of 200,000", "quantized_topk", 256, 200_000, 512),
    Case("one query of 1,000,000", "score", 1, 1_000_000, 128, quick=True),
    Case("eight queries of 200,000", "score", 8, 200_000, 512),
    Case("hinge step, all negatives active", "hinge_step", 512, 16_384, 512),
    Case("hinge step, 1 % active", "hinge_step", 512, 16_384, 512, active=0.01, quick=True),
    Case("hinge backward, 1 % active", "hinge_backward", 512, 16_384, 512, active=0.01),
    Case("log-sum-exp step, all pairs active", "logsumexp_step", 512, 16_384, 256),
    Case("log-sum-exp step, 1 % active", "logsumexp_step", 512, 16_384, 256, active=0.01, quick=True),
    Case("log-sum-exp backward, 1 % active", "logsumexp_backward", 512, 16_384, 256, active=0.01),
    Case("ranks of 10 matches in 200,000", "rank", 1000, 200_000, 256, quick=True),
    Case("top-10 of 200,000, 1,000 queries", "topk", 1000, 200_000, 256),
    Case("small 64 x 64 x 512", "score", 64, 64, 512),
    Case("small 128 x 128 x 128", "score", 128, 128, 128),
    Case("narrow D=16", "score", 1024, 1024, 16),
    Case("wide D=4096", "score", 256, 256, 4096),
)

#: The sizes for a GPU (gpu.py), the most important first: the last ones are skipped if time runs out.
GPU_CASES = (
    Case("score fp32", "score", 4096, 65_536, 512),
    Case("top-10 of 1,000,000", "topk", 1024, 1_000_000, 512),
    Case("hinge step, 1 % active", "hinge_step", 4096, 16_384, 512, active=0.01),
    Case("forward+backward fp32", "score_step", 4096, 65_536, 512),
    Case("quantized top-10 of 1,000,000", "quantized_topk", 1024, 1_000_000, 512),
    Case("score fp16", "score", 4096, 65_536, 512, "float16"),
    Case("one query of 4,000,000", "score", 1, 4_000_000, 128),
    Case("hinge step, all negatives active", "hinge_step", 4096, 16_384, 512),
    Case("top-1,000 of 1,000,000", "topk", 256, 1_000_000, 512, k=1000),
    Case("score bf16", "score", 4096, 65_536, 512, "bfloat16"),
    Case("backward fp32", "score_backward", 4096, 65_536, 512),
)
