"""The default of joint training with options changed. Compared on validation identities: this chooses defaults."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from dissim_retrieval.data import ImageSet

from .joint import DEFAULT_SETTINGS, base_config, fit
from .plan import Group
from .similar_identities import fit_on_similar_identities
from .trial import Fitted, Method
from .tuning import Range

#: Name -> changed fields of TrainConfig: one in each, after the defaults.
CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "norm at most 1": {"constraint": "cap"},
    "norm by a penalty": {"constraint": "penalty"},
    "norm free": {"constraint": "none"},
    "embeddings not normalized": {"normalize": False},
    "w <= 0": {"sign": "negative"},
    "w not learned (L1)": {"learn_weight": False},
    **{f"{share:.0%} of w start positive": {"positive_share": share} for share in (0.06, 0.12, 0.25)},
    **{f"margin {margin}": {"margin": margin} for margin in (0.5, 2.0)},
    **{f"scale {scale:g}": {"scale": scale} for scale in (2.0, 8.0)},
    **{f"bias starts at {bias:g}": {"initial_bias": bias} for bias in (0.0, 2.0, 3.0)},
    "1 hardest negative": {"num_hard_negatives": 1},
    "8 hardest negatives": {"num_hard_negatives": 8},
    "all negatives": {"num_hard_negatives": None},
    "memory of 1,024 embeddings": {"memory": 1024},
}
#: Several together: the first, and three near the settings that tuning chose in `demo` and `joint`.
TOGETHER: dict[str, dict[str, Any]] = {
    f"scale {scale:g}, head_lr {rate:g}, bias starts at {bias:g}": {
        "scale": scale, "head_lr": rate, "initial_bias": bias,
    }
    for scale, rate, bias in ((8.0, 0.01, 1.0), (4.0, 0.02, 1.0), (4.0, 0.02, 2.0), (4.0, 0.02, 3.0))
}  # fmt: skip


def _fit(
    group: Group, train_part: ImageSet, settings: Mapping[str, Any], seed: int, changes: Mapping[str, Any]
) -> Fitted:
    return fit(base_config(group, seed, **changes), train_part)


def _fit_similar(group: Group, train_part: ImageSet, settings: Mapping[str, Any], seed: int) -> Fitted:
    return fit_on_similar_identities(base_config(group, seed), train_part)


def _methods(changes: Mapping[str, dict[str, Any]], space: Mapping[str, Range]) -> dict[str, Method]:
    """The first is what the others are compared with."""
    first = next(iter(changes))
    return {name: Method(partial(_fit, changes=one), space, ours=name != first) for name, one in changes.items()}


#: Nothing is tuned. The space makes the defaults a part of the plan: with others, a file is not continued.
METHODS = _methods(CHANGES, DEFAULT_SETTINGS) | {
    "batches of similar identities": Method(_fit_similar, DEFAULT_SETTINGS, ours=True)
}
DEFAULTS_METHODS = _methods(TOGETHER, {})
