"""Where non-finite values begin: the first step, the first layer, and which tensor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gradexp.nn.network import Network
from gradexp.probes.capture import captured, undisturbed
from gradexp.probes.steps import PER_LAYER, StepValues

Kind = Literal["weight", "activation", "loss", "gradient"]
GRAD, WEIGHT = PER_LAYER.index("grad_norm"), PER_LAYER.index("weight_norm")


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
    finite = np.isfinite(values.loss)
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
    """Name the culprit by looking at one forward pass, when the loss of that step is not finite."""
    layers = network.layers()
    with undisturbed(network), captured(layers) as seen, torch.no_grad():
        network(inputs)
    for index, layer in enumerate(layers):
        if not _finite(layer.weight):
            return _found(step, "weight", index, names)
        if not (_finite(seen.pre[index]) and _finite(seen.post[index])):
            return _found(step, "activation", index, names)
    return NonFinite(step, "loss", None, None)


def _found(step: int, kind: Kind, index: int, names: list[str]) -> NonFinite:
    return NonFinite(step, kind, names[index], index + 1)


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
