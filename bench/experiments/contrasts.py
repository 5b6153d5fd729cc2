"""Pairs of methods that differ in one thing: what learned weights, the score or the loss change."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

from .bootstrap import Interval
from .comparison import gains
from .records import Records

_PAIRS_COSINE, _PAIRS_W = "projection, cosine, bias of camera pairs", "projection, w, w and bias of camera pairs"
_JOINT = [
    *((f"{loss}, {a}", f"{loss}, {b}") for loss in ("hinge", "log-sum-exp", "softmax")
      for a, b in combinations(("w", "L1", "cosine"), 2)),
    *((f"{loss}, w", "hinge, w") for loss in ("log-sum-exp", "softmax")),
]  # fmt: skip
#: Methods of a group -> the pairs.
PAIRS: dict[str, list[tuple[str, str]]] = {
    "frozen": [
        *((f"projection, {a}", f"projection, {b}") for a, b in combinations(("w", "L1", "cosine"), 2)),
        *((name, "within-class whitening (LDA)") for name in ("projection, w", "projection, cosine", "w alone")),
    ],
    "cameras": [
        *((f"projection, {score}, cameras centered", f"projection, {score}") for score in ("w", "cosine")),
        (_PAIRS_W, "projection, w"), (_PAIRS_COSINE, "projection, cosine"), (_PAIRS_W, _PAIRS_COSINE),
        (_PAIRS_W, "projection, w, cameras centered"),
    ],
    "joint": _JOINT,
    "joint, from scratch": _JOINT,
    "demo": [("hinge, w", "hinge, L1"), ("hinge, w", "multi-similarity")],
}  # fmt: skip


class Contrast(NamedTuple):
    """How much higher the first method's mean average precision and recall@1 are than the second's."""

    first: str
    second: str
    precision: Interval
    recall: Interval


def contrasts(records: Records) -> list[Contrast]:
    """Those of PAIRS, over the runs that both methods have."""
    found = []
    for first, second in PAIRS.get(records.plan["methods"], []):
        if first in records.methods and second in records.methods:
            one, other = records.runs(first), records.runs(second)
            common = sorted(set(one) & set(other))
            if common:
                found.append(Contrast(first, second, *gains(one, other, common)))
    return found
