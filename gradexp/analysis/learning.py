"""How far a run learned, whatever its number of classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradexp.analysis.evidence import Evidence


@dataclass(frozen=True)
class Learning:
    """How far training came.

    Attributes:
        classes: units of the last layer.
        skill: share of the way from chance to perfect training accuracy (Heidke skill score);
            where accuracy was not recorded, share of the first loss that training removed.
        gain: share of ln(classes), the loss of a constant guess, that training removed.
        recent_gain: share of the lowest earlier quarter's loss that the last quarter removed.
        error: standard error of `recent_gain`.
    """

    classes: int
    skill: float
    gain: float
    recent_gain: float
    error: float


def learning(evidence: Evidence) -> Learning:
    """Skill and gain at the end of training; nan where no step was made."""
    classes = max(2, int(evidence.layers.units[-1])) if len(evidence.layers) else 2
    *earlier, last = evidence.totals.loss_quarters
    lowest = min(earlier)
    chance = 1 / classes
    with np.errstate(divide="ignore", invalid="ignore"):
        recent_gain = float(1 - np.divide(last, lowest))
        error = float(np.sqrt(2) * np.divide(evidence.totals.loss_error, lowest))
    skill = (evidence.totals.train_accuracy - chance) / (1 - chance)
    if np.isnan(skill) and len(evidence.curve.loss):
        skill = 1 - last / float(evidence.curve.loss[0])
    return Learning(
        classes=classes,
        skill=skill,
        gain=1 - last / float(np.log(classes)),
        recent_gain=recent_gain,
        error=error,
    )
