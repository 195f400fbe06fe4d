"""Where non-finite values begin: the first step, the first layer, and which tensor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gradexp.nn.network import Layer, Network
from gradexp.probes.capture import captured, undisturbed
from gradexp.probes.looking import Row
from gradexp.probes.steps import PER_LAYER, SCALARS, StepValues

Kind = Literal["weight", "activation", "loss", "gradient"]
TOTAL = SCALARS.index("grad_norm")
GRAD, WEIGHT = PER_LAYER.index("grad_norm"), PER_LAYER.index("weight_norm")
FIGURES = slice(3, 8)  # of a row of `signal.csv`: means, deviations, and last pre_grad_norm


@dataclass(frozen=True)
class NonFinite:
    """The first value that was not finite: within a step weights come first, gradients last."""

    step: int
    tensor: Kind
    layer: str | None
    layer_index: int | None

    def as_dict(self) -> dict[str, Any]:
        """For `summary.json`."""
        return asdict(self)

    def sentence(self) -> str:
        """In plain words."""
        where = f" of {self.layer}" if self.layer else ""
        return f"the {self.tensor}{where} is the first that is not finite, at step {self.step}"


def first_bad_step(values: StepValues) -> int | None:
    """The first position at which loss, a gradient norm or a weight norm is not finite."""
    finite = np.isfinite(values.loss) & np.isfinite(values.scalars[:, TOTAL])
    finite &= np.isfinite(values.layers[:, [GRAD, WEIGHT]]).all((1, 2))
    return None if finite.all() else int(np.argmin(finite))


def locate_by_norms(values: StepValues, position: int, step: int, names: list[str]) -> NonFinite:
    """Name the culprit from recorded norms, when the loss of that step is finite.

    Weights in forward order, gradients in backward order: that is where each begins to spread.
    """
    weights = ~np.isfinite(values.layers[position, WEIGHT])
    if weights.any():
        return _found(step, "weight", int(np.argmax(weights)), names)
    gradients = ~np.isfinite(values.layers[position, GRAD])
    if gradients.any():
        return _found(step, "gradient", int(np.flatnonzero(gradients)[-1]), names)
    return NonFinite(step, "gradient", None, None)


def locate_by_forward(network: Network, inputs: Tensor, step: int, names: list[str]) -> NonFinite:
    """Name the culprit by repeating the forward pass of a step whose loss is not finite.

    The random state must be what it was before that step, so that dropout is the same.
    """
    layers = network.layers()
    with undisturbed(network, seed=None), captured(layers) as seen, torch.no_grad():
        network(inputs)
    activations = [
        _finite(pre) and _finite(post) for pre, post in zip(seen.pre, seen.post, strict=True)
    ]
    return _by_layers(layers, activations, step, names) or NonFinite(step, "loss", None, None)


def locate_by_probe(
    network: Network, signal: list[Row], step: int, names: list[str]
) -> NonFinite | None:
    """Name the culprit from a probe's rows, if there is one.

    It sees what the norms of a step do not: an overflow that a flat activation hides.
    """
    table = np.array([row[FIGURES] for row in signal], dtype=float)
    finite = np.isfinite(table)
    found = _by_layers(network.layers(), finite[:, :-1].all(1).tolist(), step, names)
    if found is None and not finite[:, -1].all():
        return _found(step, "gradient", int(np.flatnonzero(~finite[:, -1])[-1]), names)
    return found


def _by_layers(
    layers: list[Layer], activations: list[bool], step: int, names: list[str]
) -> NonFinite | None:
    """The first layer with a parameter, else with an activation, that is not finite."""
    weights = [all(_finite(one) for one in layer.parameters()) for layer in layers]
    checks: list[tuple[Kind, list[bool]]] = [("weight", weights), ("activation", activations)]
    for kind, finite in checks:
        if not all(finite):
            return _found(step, kind, finite.index(False), names)
    return None


def _found(step: int, kind: Kind, index: int, names: list[str]) -> NonFinite:
    return NonFinite(step, kind, names[index], index + 1)


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
