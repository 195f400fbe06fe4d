"""Gradients that explode over time, and updates too large for the weights they change."""

from __future__ import annotations

import numpy as np

from gradexp.analysis.evidence import Evidence
from gradexp.analysis.rules.registry import RULES, level_by_harm
from gradexp.analysis.verdicts import Verdict, named_layers
from gradexp.registry import Positive, UnitInterval

SMALLER_STEPS = "Take a smaller learning rate, warm it up, or clip by norm: "


@RULES.register("exploding_time", source="Pascanu et al. 2013")
def exploding_time(evidence: Evidence, *, ratio: Positive = 1000.0) -> Verdict | None:
    """The gradient of all parameters rises to `ratio` times its median over the first ten steps."""
    growth, step = evidence.totals.growth, evidence.totals.growth_step
    if not growth >= ratio:
        return None
    return Verdict(
        name="exploding",
        level=level_by_harm(evidence),
        layers=(),
        steps=(step, step),
        figure=growth,
        limit=ratio,
        unit="times its start",
        finding=f"The gradient of all parameters rose to {growth:.3g} times its start at step "
        f"{step}.",
        advice=SMALLER_STEPS + "a gradient that grows while training goes on comes from steps that "
        "overshoot.",
    )


@RULES.register(
    "exploding_updates", source="Bottou 2012: updates near 1e-3 of the weights are usual"
)
def exploding_updates(
    evidence: Evidence, *, ratio: Positive = 0.2, persistence: UnitInterval = 0.5
) -> Verdict | None:
    """update_norm / weight_norm of a layer is `ratio` or more at most steps.

    Most means: at the share `persistence` of them.
    """
    ratios = evidence.gradients.update_ratio
    if evidence.gradients.step.size == 0:
        return None
    often = (ratios >= ratio).mean(axis=0) >= persistence
    if not often.any():
        return None
    layers = tuple(evidence.layers.layer[i] for i in np.flatnonzero(often))
    largest = float(np.nanmedian(ratios[:, often], axis=0).max())
    return Verdict(
        name="exploding",
        level=level_by_harm(evidence),
        layers=layers,
        steps=(int(evidence.gradients.step[0]), int(evidence.gradients.step[-1])),
        figure=largest,
        limit=ratio,
        unit="of the weights",
        finding=f"One update changes the weights of {named_layers(layers)} by up to "
        f"{100 * largest:.3g} % of their norm (median over the steps).",
        advice=SMALLER_STEPS + "near 0.1 % is usual, and a layer rewritten at every step keeps "
        "nothing of what it learned.",
    )
