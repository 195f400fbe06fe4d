"""Gradients that vanish or explode over depth."""

from __future__ import annotations

import numpy as np

from gradexp.analysis.decay import Array
from gradexp.analysis.evidence import Evidence
from gradexp.analysis.rules.registry import (
    RULES,
    Seen,
    how_often,
    level_if_persistent,
    span,
)
from gradexp.analysis.verdicts import Level, Verdict, named_layers
from gradexp.registry import Positive, UnitInterval

REVIVE = (
    "Take leaky_relu or elu, a smaller learning rate or batch norm: a layer without a living unit "
    "passes nothing on and nothing back, so no update can wake it."
)
UNDERFLOW = 1e-30  # a norm this small next to exact zeros: float32 ran out, the units are not off


@RULES.register(
    "vanishing", source="Hochreiter 1991; Glorot and Bengio 2010; Schoenholz et al. 2017"
)
def vanishing(
    evidence: Evidence, *, decades: Positive = 3.0, persistence: UnitInterval = 0.5
) -> Verdict | None:
    """pre_grad_norm falls by `decades` or more toward the input, or is exactly 0.

    It counts when the last probe and at least the share `persistence` of all probes show it. A run
    with non-finite values is never judged: its gradients did not vanish.
    """
    depth = evidence.depth
    seen = (depth.drop >= decades) | (depth.zero_layers > 0)
    if evidence.non_finite or not seen.any():
        return None
    at = int(np.flatnonzero(seen)[-1])
    if depth.zero_layers[at] and not _underflows(evidence.probes.pre_grad_norm[at]):
        level = level_if_persistent(evidence, seen, 0)  # what is off stays off: once is enough
        return _exactly_zero(evidence, seen, at, level)
    level = level_if_persistent(evidence, seen, persistence)
    return _falling(evidence, seen, at, level, decades)


def _underflows(norms: Array) -> bool:
    positive = norms[norms > 0]
    return len(positive) > 0 and float(positive.min()) < UNDERFLOW


def _falling(evidence: Evidence, seen: Seen, at: int, level: Level, decades: float) -> Verdict:
    names, drop = evidence.layers.layer, float(evidence.depth.drop[at])
    norms = evidence.probes.pre_grad_norm[at]
    top, bottom = _where_it_falls(evidence, at)
    all_along = top - bottom > len(names) / 2
    how = f"{evidence.depth.decay[at]:.2g} per layer" if all_along else "hardly any elsewhere"
    return Verdict(
        name="vanishing",
        level=level,
        layers=tuple(names[i] for i in np.flatnonzero(norms <= norms.max() / 10**decades)),
        steps=span(evidence.probes.step, seen),
        figure=drop,
        limit=decades,
        unit="decades",
        finding=f"Going back from {names[top]} to {names[bottom]} the gradient falls by "
        f"{drop:.1f} decades ({how}), {how_often(evidence.probes.step, seen)}.",
        advice=_let_it_through(evidence, bottom),
    )


def _where_it_falls(evidence: Evidence, at: int) -> tuple[int, int]:
    """The layers between which the gradient falls, leaving out flat stretches at both ends.

    A flat stretch changes by less than 5 % of the whole fall: a collapse confined to middle layers
    is named by these.
    """
    top, bottom = int(evidence.depth.drop_from[at]), int(evidence.depth.drop_to[at])
    norms = evidence.probes.pre_grad_norm[at, bottom : top + 1]
    log = np.log10(norms, out=np.full(norms.shape, -np.inf), where=norms > 0)
    flat = 0.05 * float(evidence.depth.drop[at])
    low = int(np.flatnonzero(log <= log[0] + flat)[-1])
    high = low + int(np.flatnonzero(log[low:] >= log[-1] - flat)[0])
    return bottom + high, bottom + low


def _let_it_through(evidence: Evidence, layer: int) -> str:
    activation = evidence.layers.activation[layer]
    if activation == "sigmoid":
        return (
            "Take relu with kaiming init, or add batch norm or shortcuts: sigmoid's slope is at "
            "most 0.25, so every layer shrinks what passes."
        )
    if evidence.layers.norm[layer] == "none":
        return (
            "Scale the init to the activation (kaiming for relu, xavier for tanh), or add batch "
            "norm or shortcuts: each of these layers multiplies the gradient by less than 1."
        )
    return (
        "Add shortcuts or take fewer layers: the gradient shrinks although layers are normalized."
    )


def _exactly_zero(evidence: Evidence, seen: Seen, at: int, level: Level) -> Verdict:
    zero = np.flatnonzero(evidence.probes.pre_grad_norm[at] == 0)
    layers = tuple(evidence.layers.layer[i] for i in zero)
    cause, advice = _why_zero(evidence, at, int(zero[-1]))
    return Verdict(
        name="vanishing",
        level=level,
        layers=layers,
        steps=span(evidence.probes.step, seen),
        figure=float(len(zero)),
        limit=0.0,
        unit="layers",
        finding=f"The gradient is exactly 0 in {named_layers(layers)}, because {cause}, "
        f"{how_often(evidence.probes.step, seen)}.",
        advice=advice,
    )


def _why_zero(evidence: Evidence, at: int, layer: int) -> tuple[str, str]:
    """What stops the gradient at the last layer that gets none, and what to do about it."""
    name, probes = evidence.layers.layer[layer], evidence.probes
    if probes.dead[at, layer] == evidence.layers.units[layer]:
        return (
            f"every unit of {name} is dead",
            REVIVE,
        )
    if probes.saturated_fraction[at, layer] >= 1 or probes.inactive_fraction[at, layer] >= 1:
        return (
            f"{name} is flat for every example",
            "Take a smaller init or add norm before the activation: far from 0 its slope is 0.",
        )
    return (
        f"what follows {name} passes nothing back",
        "Look for weights that are 0 above this layer: a product with 0 has no gradient.",
    )


@RULES.register("exploding_depth", source="Bengio et al. 1994; Yang et al. 2019 for batch norm")
def exploding_depth(
    evidence: Evidence, *, decades: Positive = 3.0, persistence: UnitInterval = 0.5
) -> Verdict | None:
    """pre_grad_norm grows by `decades` or more toward the input; persistence as for vanishing."""
    depth = evidence.depth
    seen = depth.rise >= decades
    if not seen.any():
        return None
    at = int(np.flatnonzero(seen)[-1])
    names = evidence.layers.layer
    top, bottom = int(depth.rise_from[at]), int(depth.rise_to[at])
    rise = float(depth.rise[at])
    return Verdict(
        name="exploding",
        level=level_if_persistent(evidence, seen, persistence),
        layers=names[bottom : top + 1],
        steps=span(evidence.probes.step, seen),
        figure=rise,
        limit=decades,
        unit="decades",
        finding=f"Going back from {names[top]} to {names[bottom]} the gradient grows by "
        f"{rise:.1f} decades, {how_often(evidence.probes.step, seen)}.",
        advice="Take a smaller init (kaiming, xavier or orthogonal), or add layer norm or "
        "shortcuts: each of these layers multiplies the gradient by more than 1. Clipping only "
        "hides it.",
    )
