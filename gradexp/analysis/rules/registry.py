"""The registry of rules, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gradexp.analysis.decay import Array
from gradexp.analysis.evidence import Evidence
from gradexp.analysis.learning import learning
from gradexp.analysis.verdicts import Level, Verdict
from gradexp.registry import Registry

Rule = Callable[[Evidence], Verdict | None]
Seen = npt.NDArray[np.bool_]

RULES: Registry[Callable[..., Any]] = Registry(
    "rule", "signs by which a run is judged; their options are limits, set in a rules file"
)

GOOD_SKILL = 0.5  # half of the way from chance to perfect accuracy: the sign did no visible harm
NO_SKILL = 0.1


def level_by_harm(evidence: Evidence) -> Level:
    """A sign is a note in a run that learns well, critical in one that does not learn.

    Learning well takes good accuracy and a loss below that of a constant guess. A run that is
    neither, or that was only observed, gets a warning.
    """
    reached = learning(evidence)
    if reached.skill >= GOOD_SKILL and reached.gain > 0:
        return "note"
    return "critical" if reached.skill < NO_SKILL else "warning"


def level_if_persistent(evidence: Evidence, seen: Seen, share: float) -> Level:
    """As `level_by_harm`; a note when the sign does not persist.

    It persists when the last probe and at least the share `share` of all probes show it: what
    training itself removed, or what shows only now and then, calls for nothing.
    """
    persists = bool(seen[-1]) and float(np.mean(seen)) >= share
    return level_by_harm(evidence) if persists else "note"


def sound_probes(evidence: Evidence) -> int:
    """How many probes were made before anything became non-finite; what follows says nothing."""
    if evidence.non_finite is None:
        return len(evidence.probes)
    return int((evidence.probes.step < evidence.non_finite.step).sum())


def span(steps: Array, seen: Seen) -> tuple[int, int]:
    """The first and the last step that show a sign."""
    shown = steps[seen]
    return int(shown[0]), int(shown[-1])


def how_often(steps: Array, seen: Seen) -> str:
    """In words: at which of the probes a sign was seen."""
    if len(steps) == 1:
        return f"at step {steps[0]:.0f}"
    if seen.all():
        return f"at all {len(steps)} probes"
    first, last = span(steps, seen)
    return f"at {seen.sum()} of {len(steps)} probes, from step {first} to {last}"
