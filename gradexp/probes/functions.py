"""What is known of activations that are met as functions: the facts of our own entries."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from torch import nn

from gradexp.nn.activations import ACTIVATIONS, Activation
from gradexp.probes.following import Made

BOUNDED = frozenset(("softsign", "erf"))


def known(made: Made) -> tuple[str, Activation]:
    """What an activation is called, and its facts: one object for all layers that share it."""
    if made.name in {"hardtanh", "clamp", "clip", "clamp_min", "relu6"}:
        return _limited(made.name, *_limits(made))
    if made.name == "leaky_relu":
        return made.name, _entry(
            made.name, negative_slope=_argument(made, 1, "negative_slope", 0.01)
        )
    if made.name == "elu":
        return made.name, _entry(made.name, alpha=_argument(made, 1, "alpha", 1.0))
    return made.name, _facts(made.name)


def _argument(made: Made, position: int, name: str, default: Any) -> Any:
    """An argument of the call, however it was given."""
    if len(made.args) > position:
        return made.args[position]
    return made.kwargs.get(name, default)


@cache
def _entry(name: str, **options: Any) -> Activation:
    made: Activation = ACTIVATIONS[name].make(**options)
    return made


@cache
def _facts(name: str) -> Activation:
    """Of a function without options."""
    if name in ACTIVATIONS:
        return _entry(name)
    return Activation(lambda _units: nn.Identity(), bounded=name in BOUNDED)


def _limits(made: Made) -> tuple[float, float]:
    """Between which values a piecewise linear function keeps its input."""
    if made.name == "relu6":
        return 0.0, 6.0
    if made.name == "hardtanh":
        return _argument(made, 1, "min_val", -1.0), _argument(made, 2, "max_val", 1.0)
    low = _argument(made, 1, "min", None)
    high = None if made.name == "clamp_min" else _argument(made, 2, "max", None)
    return _number(low, -math.inf), _number(high, math.inf)


def _number(limit: Any, missing: float) -> float:
    """A limit that is a tensor is different for each unit: nothing is known of it."""
    return (
        missing if limit is None else float(limit) if isinstance(limit, int | float) else math.nan
    )


@cache
def _limited(name: str, low: float, high: float) -> tuple[str, Activation]:
    for ours, start, end in (("relu", 0.0, math.inf), ("relu6", 0.0, 6.0), ("hardtanh", -1.0, 1.0)):
        if low == start and high == end:
            return ours, _entry(ours)
    ends = ((-math.inf, low), (high, math.inf))
    flat = tuple(end for end in ends if not math.isnan(end[0] + end[1]) and end[0] != end[1])
    bounded = math.isfinite(low) and math.isfinite(high)
    known = not math.isnan(low + high)
    return name, Activation(lambda _units: nn.Identity(), flat=flat, steep=known, bounded=bounded)
