"""Every size, and every formula by which bench/ turns a time into a rate, a limit or a fraction of one.

One **element** is one step (n, m, d): a query, a reference, a dimension. A rate is elements / seconds of the whole
call, whatever the operation; for a step of training (forward and backward) an element is its way there and back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

#: Operations: what one element costs in steps of the ceilings of ceiling.cpp. "score" is max, fma (E7) or, off x86,
#: sub, and, fma (E1); "backward" is sub, sign, fma, fma; "sad" is the sum of absolute differences of bytes, add. A
#: hinge step does the backward of active pairs alone, so that cost is the case's share.
STEPS = {
    "score": {"score": 1.0},
    "score_backward": {"backward": 1.0},
    "score_step": {"score": 1.0, "backward": 1.0},
    "topk": {"score": 1.0},
    "quantized_topk": {"sad": 1.0},
    "hinge_backward": {"backward": None},
    "hinge_step": {"score": 1.0, "backward": None},
}


@dataclass(frozen=True)
class Case:
    """One size of one operation, and the numbers that follow from it."""

    name: str
    operation: str
    queries: int
    references: int
    dim: int
    dtype: str = "float32"
    k: int = 10  # topk, quantized_topk
    active: float = 1.0  # hinge: the share of pairs inside the margin
    quick: bool = False  # part of `--quick`, with fewer rows

    @property
    def elements(self) -> int:
        return self.queries * self.references * self.dim

    @property
    def bytes(self) -> int:
        """Memory traffic that no implementation avoids: each input read once, each output written once. For a
        quantized search the references are their codes, a byte each."""
        item, rows, pairs = ITEM_BYTES[self.dtype], self.queries + self.references, self.queries * self.references
        inputs, scores = rows * self.dim * item, pairs * item
        read = {
            "score": inputs,
            "score_backward": inputs + scores,
            "score_step": inputs + scores,
            "topk": inputs,
            "quantized_topk": self.references * self.dim + self.queries * self.dim * item,
            "hinge_backward": inputs + 8 * rows + pairs // 8,
            "hinge_step": inputs + 8 * rows,
        }[self.operation]
        return read + sum(self.results)

    @property
    def results(self) -> tuple[int, ...]:
        """Bytes of each tensor that a call returns, the small ones left out."""
        item = ITEM_BYTES[self.dtype]
        scores = self.queries * self.references * item
        gradients = self.queries * self.dim * item, self.references * self.dim * item
        best = self.queries * self.k * item, self.queries * self.k * 8
        return {
            "score": (scores,),
            "score_backward": gradients,
            "score_step": (scores, *gradients),
            "topk": best,
            "quantized_topk": best,
            "hinge_backward": gradients,
            "hinge_step": gradients,
        }[self.operation]

    @property
    def steps(self) -> dict[str, float]:
        """Steps of each arithmetic ceiling that an element costs."""
        return {name: self.active if cost is None else cost for name, cost in STEPS[self.operation].items()}

    @property
    def by_tiles(self) -> bool:
        """Whether scores come from register tiles; those of few queries come row by row (csrc/cpu/scan.h)."""
        return "score" in self.steps and self.queries > 16

    def limits(self, ceilings: Mapping[str, float]) -> dict[str, float]:
        """Elements a second that arithmetic and memory allow; ceilings: "score", "backward", "sad" in elements a
        second and "memory" in bytes a second, each as measured on all threads."""
        arithmetic = 1 / sum(cost / ceilings[name] for name, cost in self.steps.items())
        return {"arithmetic": arithmetic, "memory": ceilings["memory"] * self.elements / self.bytes}

    def rows_within(self, rate: float, whole: float, part: float) -> int:
        """Queries to measure a competitor of about `rate` elements a second on: all if that takes less than `whole`
        seconds, else a power of two that takes about `part` seconds. A rate is a property of the loop, not of the
        number of queries; the report says how many were measured."""
        seconds = self.elements / rate
        if seconds <= whole:
            return self.queries
        return 2 ** max(0, int(math.log2(self.queries * part / seconds)))

    def with_active(self, share: float) -> Case:
        """The same with the share of active pairs that was counted, for the ceiling."""
        return replace(self, active=share)

    def shrunk(self, elements: int) -> Case:
        """The same with rows halved until no more than this many elements are left."""
        case = self
        while case.elements > elements and max(case.queries, case.references) > 64:
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
    Case("small 64 x 64 x 512", "score", 64, 64, 512),
    Case("small 128 x 128 x 128", "score", 128, 128, 128),
    Case("narrow D=16", "score", 1024, 1024, 16),
    Case("wide D=4096", "score", 256, 256, 4096),
)

#: What a GPU is measured on (gpu.py), the most important first: those that time does not suffice for are left out.
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
