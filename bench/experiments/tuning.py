"""The ranges of a method's settings, and the trials drawn from them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np


class Range(Protocol):
    """Values of a setting: `default`, and `at(u)` for u from 0 to below 1."""

    default: Any

    def at(self, u: float) -> Any: ...


@dataclass(frozen=True)
class Log:
    """From low to high, uniform in the logarithm."""

    low: float
    high: float
    default: float

    def at(self, u: float) -> float:
        return _rounded(self.low * (self.high / self.low) ** u)


@dataclass(frozen=True)
class Linear:
    """From low to high, uniform."""

    low: float
    high: float
    default: float

    def at(self, u: float) -> float:
        return _rounded(self.low + (self.high - self.low) * u)


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple
    default: Any

    def at(self, u: float) -> Any:
        return self.values[int(u * len(self.values))]


def settings_to_try(space: Mapping[str, Range], trials: int) -> list[dict[str, Any]]:
    """The settings of a method's trials: the default, then random ones, at most `trials` in all.

    The random ones are a Latin hypercube: each range is divided into as many equal parts as there are random trials,
    and each part is used once. The generator of a setting is seeded with its name and range, so methods try the same
    values of the settings that they share. If there are no more different settings than trials, all of them are tried
    once.
    """
    choices = [one.values for one in space.values() if isinstance(one, Choice)]
    if len(choices) == len(space) and math.prod(map(len, choices)) <= trials:
        return [dict(zip(space, values, strict=True)) for values in product(*choices)]
    columns = {name: _column(name, one, trials - 1) for name, one in space.items()}
    default = {name: one.default for name, one in space.items()}
    return [default, *(dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))]


def _column(name: str, one: Range, count: int) -> list[Any]:
    """Random values, one of each of `count` equal parts of a range, in random order."""
    draw = np.random.default_rng(zlib.crc32(f"{name} {one}".encode()))
    return [one.at(u) for u in (draw.permutation(count) + draw.random(count)) / max(1, count)]


def _rounded(value: float) -> float:
    """Four digits, so that a setting can be read and typed."""
    return float(f"{value:.4g}")
