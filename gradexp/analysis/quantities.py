"""The figures by which runs are compared, one number a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradexp.analysis.decay import Array
from gradexp.analysis.evidence import Evidence


@dataclass(frozen=True)
class Quantity:
    """One figure of a run.

    Attributes:
        name: its column in tables.
        title: what it is called in tables and figures.
        unit: its unit; `fraction` is shown in percent.
        of: computes it; nan where it does not apply.
        better: 1 when more is better, -1 when less is, 0 when neither is.
    """

    name: str
    title: str
    unit: str
    of: Callable[[Evidence], float]
    better: int = 0


def _decay(evidence: Evidence, probe: int) -> float:
    known = evidence.depth.decay[~np.isnan(evidence.depth.decay)]
    return float(known[probe]) if len(known) else math.nan


def _dead_fraction(evidence: Evidence, probe: int) -> float:
    if len(evidence.probes) == 0:
        return math.nan
    dead = evidence.probes.dead[probe]
    counted = np.isfinite(dead)
    units = evidence.layers.units[counted].sum()
    return float(dead[counted].sum() / units) if units else math.nan


def _saturated_fraction(evidence: Evidence) -> float:
    return _median(evidence.probes.saturated_fraction[-1:])


def _update_ratio(evidence: Evidence) -> float:
    return _median(evidence.gradients.update_ratio)


def _median(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else math.nan


def _loss(evidence: Evidence, value: float) -> float:
    """A loss that is not a number any more is beyond every bound, not missing."""
    return math.inf if evidence.non_finite and math.isnan(value) else value


QUANTITIES: tuple[Quantity, ...] = (
    Quantity("decay_start", "decay at the start", "decades / layer", lambda e: _decay(e, 0)),
    Quantity("decay", "decay", "decades / layer", lambda e: _decay(e, -1)),
    Quantity("born_dead_fraction", "born dead", "fraction", lambda e: _dead_fraction(e, 0), -1),
    Quantity("dead_fraction", "dead units", "fraction", lambda e: _dead_fraction(e, -1), -1),
    Quantity("saturated_fraction", "saturated", "fraction", _saturated_fraction, -1),
    Quantity("update_ratio", "update ratio", "update / weight", _update_ratio),
    Quantity("train_loss", "train loss", "nats", lambda e: _loss(e, e.totals.train_loss), -1),
    Quantity("train_accuracy", "train accuracy", "fraction", lambda e: e.totals.train_accuracy, 1),
    Quantity("test_loss", "test loss", "nats", lambda e: _loss(e, e.totals.test_loss), -1),
    Quantity("test_accuracy", "test accuracy", "fraction", lambda e: e.totals.test_accuracy, 1),
)
QUANTITY = {quantity.name: quantity for quantity in QUANTITIES}
