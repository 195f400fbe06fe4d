"""Training that ended in numbers that are none, blew up, or never began."""

from __future__ import annotations

import numpy as np

from gradexp.analysis.evidence import Evidence
from gradexp.analysis.learning import learning
from gradexp.analysis.rules.registry import RULES
from gradexp.analysis.verdicts import Verdict
from gradexp.registry import Count, Positive, UnitInterval


@RULES.register("non_finite")
def non_finite(evidence: Evidence) -> Verdict | None:
    """A loss, gradient, weight or activation is nan or infinite."""
    return _non_finite(evidence, "diverged")


@RULES.register("exploding_non_finite")
def exploding_non_finite(evidence: Evidence) -> Verdict | None:
    """A non-finite value ends in gradients without bound: they exploded, they did not vanish."""
    return _non_finite(evidence, "exploding")


def _non_finite(evidence: Evidence, name: str) -> Verdict | None:
    bad = evidence.non_finite
    if bad is None:
        return None
    where = f"{bad.tensor} of {bad.layer}" if bad.layer else bad.tensor
    return Verdict(
        name=name,
        level="critical",
        layers=(bad.layer,) if bad.layer else (),
        steps=(bad.step, bad.step),
        figure=float("inf"),
        limit=float(np.finfo(np.float32).max),
        unit="",
        finding=f"The {where} is not finite from step {bad.step} on.",
        advice="Take a smaller learning rate or init, warm up, or clip by norm: what leaves the "
        "range of float32 never comes back.",
    )


@RULES.register("diverged")
def diverged(evidence: Evidence, *, ratio: Positive = 2.0) -> Verdict | None:
    """The training loss ends at `ratio` times its start, and of a constant guess, or above."""
    first, *_, last = evidence.totals.loss_quarters
    guess = float(np.log(learning(evidence).classes))
    before = max(first, guess)
    if not last >= ratio * before:
        return None
    return Verdict(
        name="diverged",
        level="critical",
        layers=(),
        steps=(evidence.totals.steps * 3 // 4, evidence.totals.steps),
        figure=last / before,
        limit=ratio,
        unit="times its start",
        finding=f"The training loss rose from {first:.3g} to {last:.3g}; a constant guess costs "
        f"{guess:.3g}.",
        advice="Take a smaller learning rate, or warm it up: steps that raise the loss overshoot.",
    )


@RULES.register("stalled")
def stalled(
    evidence: Evidence,
    *,
    gain: UnitInterval = 0.02,
    recent: UnitInterval = 0.02,
    steps: Count = 20,
) -> Verdict | None:
    """After `steps` or more, training removed less than `gain` of the loss of a constant guess.

    And it goes nowhere: the last quarter's loss is less than `recent` below the lowest of the
    others, or not further below it than noise may bring it (two standard errors).
    """
    reached, totals = learning(evidence), evidence.totals
    going_nowhere = reached.gain < gain and reached.recent_gain < max(recent, 2 * reached.error)
    if totals.steps < steps or not going_nowhere:
        return None
    first, *_, last = totals.loss_quarters
    return Verdict(
        name="stalled",
        level="critical",
        layers=(),
        steps=(0, totals.steps),
        figure=max(0.0, reached.gain),
        limit=gain,
        unit="of the loss of a constant guess",
        finding=f"The training loss went from {first:.3g} to {last:.3g} in {totals.steps} steps; "
        f"a constant guess costs {np.log(reached.classes):.3g}.",
        advice=_move(evidence),
    )


def _move(evidence: Evidence) -> str:
    """What would set training going, by the size of its updates."""
    ratios = evidence.gradients.update_ratio
    typical = float(np.nanmedian(ratios)) if np.isfinite(ratios).any() else 0.0
    if typical < 1e-5:  # noqa: PLR2004  a hundredth of the usual 1e-3
        return (
            f"Raise the learning rate, or mend what keeps gradients away: an update changes the "
            f"weights by only {typical:.1g} of their norm, and 1e-3 is usual."
        )
    return (
        "Change init, norm or optimizer before training longer: the weights move by "
        f"{typical:.1g} of their norm per step and still nothing is learned."
    )
