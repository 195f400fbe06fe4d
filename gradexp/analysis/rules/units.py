"""Units that stop: dying, saturated."""

from __future__ import annotations

import numpy as np

from gradexp.analysis.evidence import Evidence
from gradexp.analysis.rules.depth import REVIVE
from gradexp.analysis.rules.registry import (
    RULES,
    Seen,
    how_often,
    level_by_harm,
    level_if_persistent,
    sound_probes,
    span,
)
from gradexp.analysis.verdicts import Verdict, named_layers
from gradexp.registry import UnitInterval

# Cut off or flattening out at both ends: far from 0 on either side they pass nothing back. A
# rectifier is off on one side by design: its units are judged by `dying`.


@RULES.register("dead_layer", source="Lu et al. 2019: Dying ReLU and Initialization")
def dead_layer(evidence: Evidence) -> Verdict | None:
    """Every unit of a layer is dead at the last probe."""
    sound = sound_probes(evidence)
    seen = evidence.probes.dead[:sound] == evidence.layers.units
    if sound == 0 or not seen[-1].any():
        return None
    layers = tuple(evidence.layers.layer[i] for i in np.flatnonzero(seen[-1]))
    steps = span(evidence.probes.step[:sound], seen[:, seen[-1]].any(axis=1))
    return Verdict(
        name="dying",
        level="critical",
        layers=layers,
        steps=steps,
        figure=1.0,
        limit=1.0,
        unit="of a layer's units",
        finding=f"Every unit of {named_layers(layers)} is dead, first seen at step {steps[0]}.",
        advice=REVIVE,
    )


@RULES.register("dying", source="Maas et al. 2013; Lu et al. 2019")
def dying(
    evidence: Evidence, *, share: UnitInterval = 0.5, noted: UnitInterval = 0.1
) -> Verdict | None:
    """More than `share` of all units are dead at the last probe; from `noted` on it is a note.

    Only units of activations with an exactly flat region count. A run that learns well despite its
    dead units gets no more than a note.
    """
    step = evidence.probes.step[: sound_probes(evidence)]
    dead, units = evidence.probes.dead[: len(step)], evidence.layers.units
    if len(step) == 0 or np.isnan(dead[-1]).all():
        return None
    shares = np.nansum(dead, axis=1) / units[~np.isnan(dead[-1])].sum()
    if shares[-1] < noted:
        return None
    layers = np.array(evidence.layers.layer)[dead[-1] >= noted * units]
    fullest = evidence.layers.layer[int(np.nanargmax(dead[-1] / units))]
    return Verdict(
        name="dying",
        level=level_by_harm(evidence) if shares[-1] > share else "note",
        layers=tuple(layers.tolist()),
        steps=span(step, shares >= noted),
        figure=float(shares[-1]),
        limit=share,
        unit="of the units",
        finding=f"{np.nansum(dead[-1]):.0f} units ({100 * shares[-1]:.0f} %) are dead, "
        f"{np.nansum(dead[0]):.0f} of them since step {step[0]:.0f}, most in {fullest}.",
        advice="Take a smaller learning rate, leaky_relu or batch norm: a dead unit has no "
        "gradient of its own and adds nothing to the net.",
    )


@RULES.register("saturated", source="Glorot and Bengio 2010")
def saturated(
    evidence: Evidence, *, share: UnitInterval = 0.5, persistence: UnitInterval = 0.5
) -> Verdict | None:
    """The share `share` of a bounded activation's values lies where it is almost flat.

    Only sigmoid, tanh and their like are judged, those that are bounded and steep around 0;
    persistence as for vanishing.
    """
    fraction = evidence.probes.saturated_fraction
    high = np.asarray((fraction >= share) & (evidence.layers.saturates == 1))
    seen: Seen = np.asarray(high.any(axis=1))
    if not seen.any():
        return None
    at = int(np.flatnonzero(seen)[-1])
    layers = tuple(evidence.layers.layer[i] for i in np.flatnonzero(high[at]))
    worst = float(fraction[at][high[at]].max())
    return Verdict(
        name="saturated",
        level=level_if_persistent(evidence, seen, persistence),
        layers=layers,
        steps=span(evidence.probes.step, seen),
        figure=worst,
        limit=share,
        unit="of the values",
        finding=f"Up to {100 * worst:.0f} % of the values in {named_layers(layers)} lie where "
        f"{evidence.layers.activation[int(np.flatnonzero(high[at])[0])]} is flat, "
        f"{how_often(evidence.probes.step, seen)}.",
        advice="Take a smaller init (xavier), normalize the inputs, or add norm before the "
        "activation: there its slope is below 0.02 and hardly any gradient passes.",
    )
