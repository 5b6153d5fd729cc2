"""The user's own network and loss: a record of what they are, so that a run is not continued with others."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from torch import nn


def module_settings(module: nn.Module) -> dict[str, Any]:
    """The classes of a module and its submodules, and their public attributes that are numbers, texts, bools, None or
    sequences of these, in a form that JSON keeps.

    "class" and "margin" are those of the module itself, "head.class" and "head.scale" those of its submodule `head`.
    """
    settings: dict[str, Any] = {}
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        settings[f"{prefix}class"] = f"{type(part).__module__}.{type(part).__qualname__}"
        for name, value in vars(part).items():
            if not name.startswith("_") and name != "training" and _is_simple(value):
                settings[f"{prefix}{name}"] = _for_json(value)
    return settings


def settings_digest(module: nn.Module) -> str:
    """32 hex digits of the settings of a module that has many."""
    text = json.dumps(module_settings(module), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def check_same_modules(recorded: Mapping, found: Mapping, *, source: object) -> None:
    """Raise if network or loss are others than those that `source` was trained with. Both arguments are provenances.

    What `source` did not record, because an earlier version wrote it, is not checked.
    """
    before, now = recorded["backbone"], found["backbone"]
    if before["name"] is None:
        same = "settings" not in before or before["settings"] == now.get("settings")
    else:
        same = now["name"] is not None
    if not same:
        raise _another("backbone", "network", source, _shown_backbone(before), _shown_backbone(now))
    if "loss" in recorded and recorded["loss"] != found["loss"]:
        raise _another("loss", "loss", source, *_shown_losses(recorded["loss"], found["loss"]))


def _is_simple(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_simple, value))
    return value is None or isinstance(value, bool | int | float | str)


def _for_json(value: Any) -> Any:
    """Lists for tuples, and texts for nan and inf."""
    if isinstance(value, tuple | list):
        return [_for_json(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _shown_backbone(backbone: Mapping) -> str:
    if backbone["name"] is not None:
        return f"{backbone['name']}, built by its name"
    return f"a {backbone['class']} with settings {backbone['settings'][:12]}"


def _shown_losses(before: Mapping | None, now: Mapping | None) -> tuple[str, str]:
    """Both losses, by the class and, if that is the same, by the first settings that differ. None: by its name."""
    names: list[str] = []
    if before and now and before["class"] == now["class"]:
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)][:3]
    return _shown_loss(before, names), _shown_loss(now, names)


def _shown_loss(loss: Mapping | None, names: list[str]) -> str:
    if loss is None:
        return "one that TrainConfig.loss names"
    return ", ".join([loss["class"], *(f"{name} {loss[name]}" if name in loss else f"no {name}" for name in names)])


def _another(argument: str, what: str, source: object, before: str, now: str) -> ValueError:
    return ValueError(
        f"{argument}: expected the {what} that {source} was trained with ({before}), got another ({now}). Pass that"
        f" {what}, or choose a new folder."
    )
