"""The sets of methods that are compared with each other: what the tables need to know of each.

The methods themselves are in METHODS of runner.py, so that tables can be written without them. A new set is an entry
here and one there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MethodSet:
    """A set of methods."""

    kind: str
    """How the backbone is used, for the summary."""
    frozen: bool = False
    """Whether the methods get features of a frozen backbone instead of images."""
    tuned: bool = True
    """Whether settings are tuned and the test part is used. If not, methods are compared on validation parts."""
    pairs: Pairs = ()
    """Methods that differ in one thing: what learned weights, the score or the loss change. A table has those whose
    methods are both in its set."""


_BIAS_OF_PAIRS, _W_OF_PAIRS = "projection, cosine, bias of camera pairs", "projection, w, w and bias of camera pairs"
_SCORES: Pairs = (*combinations(("w", "L1", "cosine"), 2), ("w", "w <= 0"))
_JOINT_PAIRS: Pairs = (
    *((f"{loss}, {a}", f"{loss}, {b}") for loss in ("hinge", "log-sum-exp", "softmax") for a, b in _SCORES),
    *((f"{loss}, w", "hinge, w") for loss in ("log-sum-exp", "softmax")),
    *(
        (f"{loss}, w", other)
        for loss in ("hinge", "log-sum-exp")
        for other in ("multi-similarity", "SupCon", "triplet, batch-hard")
    ),
    ("triplet, batch-hard", "log-sum-exp, cosine"),
    ("hinge, w", "hinge, w, default settings"),
)
_FROZEN_PAIRS: Pairs = (
    *((f"projection, {a}", f"projection, {b}") for a, b in _SCORES),
    *(
        (name, "within-class whitening (LDA)")
        for name in ("projection, w", "projection, L1", "projection, cosine", "w alone")
    ),
    ("w alone", "w <= 0 alone"),
    ("projection, w", "fit_head, default settings"),
)
_AT_SCALE_4 = "scale 4, head_lr 0.02, bias starts at {}"
METHOD_SETS = {
    "frozen": MethodSet("frozen", frozen=True, pairs=_FROZEN_PAIRS),
    "selected, frozen": MethodSet("frozen", frozen=True, pairs=_FROZEN_PAIRS),
    "cameras": MethodSet(
        "frozen, cameras known",
        frozen=True,
        pairs=(
            *((f"projection, {score}, cameras centered", f"projection, {score}") for score in ("w", "cosine")),
            (_W_OF_PAIRS, "projection, w"),
            (_BIAS_OF_PAIRS, "projection, cosine"),
            (_W_OF_PAIRS, _BIAS_OF_PAIRS),
            (_W_OF_PAIRS, "projection, w, cameras centered"),
        ),
    ),
    "joint": MethodSet("trained", pairs=_JOINT_PAIRS),
    "joint, from scratch": MethodSet("trained from scratch", pairs=_JOINT_PAIRS),
    "selected, from scratch": MethodSet("trained from scratch", pairs=_JOINT_PAIRS),
    "demo": MethodSet("trained as in the demo", pairs=(("hinge, w", "hinge, L1"), ("hinge, w", "multi-similarity"))),
    "factors": MethodSet("trained, one option changed", tuned=False),
    "fit_head": MethodSet("frozen, one option changed", frozen=True, tuned=False),
    "fit_head, batches": MethodSet("frozen, one option changed", frozen=True, tuned=False),
    "defaults": MethodSet(
        "trained, several options changed",
        tuned=False,
        pairs=tuple((_AT_SCALE_4.format(bias), _AT_SCALE_4.format(1)) for bias in (2, 3)),
    ),
}


def is_plain_l1(method: str) -> bool:
    """Whether it scores with minus an L1 distance, without learned weights."""
    return method.split(", ")[-1] == "L1"
