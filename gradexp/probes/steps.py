"""What is measured at every training step: norms of gradients, weights and updates.

Everything stays on the device in one row per step and moves to the host in chunks: no step waits
for a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradexp.nn.network import Network
from gradexp.probes.numbers import Norms

SCALARS = ("loss", "accuracy", "grad_norm", "clip_coefficient")
PER_LAYER = ("grad_norm", "clipped_grad_norm", "bias_grad_norm", "weight_norm", "update_norm")


@dataclass(frozen=True)
class StepValues:
    """The figures of consecutive steps, on the host.

    Attributes:
        scalars: [steps, 4] float64, in the order of `SCALARS`.
        layers: [steps, 5, layers] float64, in the order of `PER_LAYER`.
        updates: how many of the steps, from the first, ended in an update.
    """

    scalars: np.ndarray
    layers: np.ndarray
    updates: int

    def __len__(self) -> int:
        return len(self.scalars)

    def ended_before_update(self, position: int) -> StepValues:
        """The steps up to that one, whose own update has been taken back."""
        return StepValues(self.scalars[: position + 1], self.layers[: position + 1], position)

    @property
    def loss(self) -> np.ndarray:
        """Loss per step, [steps]."""
        losses: np.ndarray = self.scalars[:, 0]
        return losses


@dataclass
class Measured:
    """One step's figures, still on the device; norms as norms of rows, see `Norms`."""

    loss: Tensor
    predicted: Tensor
    targets: Tensor
    raw: Tensor
    weights: Tensor
    unclipped: Tensor
    clipped: Tensor
    updates: Tensor


class StepProbe:
    """Collects the figures of steps until they are taken.

    Within a step, call `gradients` after the backward pass, `regularized` when L1 has been added,
    `clipped` when the gradients have been changed for good, `updated` after the optimizer's step,
    then `close`. A step only measures; what can be computed from its figures is computed for many
    steps at once in `take`: small steps feel every operation.
    """

    def __init__(self, network: Network) -> None:
        layers = network.layers()
        self.layer_count = len(layers)
        weights = [layer.weight for layer in layers]
        biases = [layer.bias for layer in layers if layer.bias is not None]
        own = {id(parameter) for parameter in (*weights, *biases)}
        others = [one for one in network.parameters() if id(one) not in own]
        self._parameters = [*weights, *biases, *others]
        self._bias_at = [index for index, layer in enumerate(layers) if layer.bias is not None]
        self._weights = [weight.detach() for weight in weights]
        self._gradient_norms = Norms(self._parameters)
        self._weight_norms = Norms(self._weights)
        self._weight_norms.load(self._weights)
        self._nothing = torch.full_like(self._weight_norms.measure(), torch.nan)
        self._steps: list[Measured] = []

    @property
    def gradient_tensors(self) -> list[Tensor]:
        """The gradients of all parameters; weights first, in layer order."""
        return [one.grad for one in self._parameters if one.grad is not None]

    @property
    def total_norm(self) -> Tensor:
        """The L2 norm of all gradients that are about to be clipped, a 0-d tensor."""
        total: Tensor = torch.linalg.vector_norm(self._now.unclipped)
        return total

    def _measure_gradients(self) -> Tensor:
        self._gradient_norms.load(self.gradient_tensors)
        return self._gradient_norms.measure()

    def gradients(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Measure gradients and weights after the backward pass."""
        raw = self._measure_gradients()
        self._weight_norms.load(self._weights)
        weights = self._weight_norms.measure()
        predicted = logits.detach().argmax(1)
        self._now = Measured(
            loss.detach(), predicted, targets, raw, weights, raw, raw, self._nothing
        )

    def regularized(self) -> None:
        """Measure what will be clipped, L1 added."""
        self._now.unclipped = self._measure_gradients()

    def clipped(self) -> None:
        """Measure again what the optimizer will get."""
        self._now.clipped = self._measure_gradients()

    def updated(self) -> None:
        """Measure how far the weights have moved since `gradients`."""
        self._weight_norms.subtract(self._weights)
        self._now.updates = self._weight_norms.measure()

    def close(self) -> None:
        """Keep the step's figures."""
        self._steps.append(self._now)

    def forget(self) -> None:
        """Begin anew without the collected steps."""
        self._steps = []

    def take(self) -> StepValues:
        """Move the collected steps, at least one, to the host and begin anew."""
        steps, self._steps = self._steps, []

        def host(name: str) -> np.ndarray:
            values: Tensor = torch.stack([getattr(step, name) for step in steps])
            return values.cpu().double().numpy()

        raw, unclipped, clipped = (
            self._gradient_norms.combine(host(name)) for name in ("raw", "unclipped", "clipped")
        )
        weights, updates = (
            self._weight_norms.combine(host(name)) for name in ("weights", "updates")
        )
        accuracy = (host("predicted") == host("targets")).mean(1)
        total, before, after = (np.linalg.norm(one, axis=1) for one in (raw, unclipped, clipped))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where(before == 0, 1.0, after / before)
        count = self.layer_count
        biases = np.full((len(steps), count), np.nan)
        biases[:, self._bias_at] = raw[:, count : count + len(self._bias_at)]
        layers = raw[:, :count], clipped[:, :count], biases, weights, updates
        return StepValues(
            np.stack((host("loss"), accuracy, total, ratio), 1),
            np.stack(layers, 1),
            sum(step.updates is not self._nothing for step in steps),
        )


@dataclass(frozen=True)
class LayerNorms:
    """One step's figures per layer, [5, layers], and whether the step ended in an update."""

    step: int
    values: np.ndarray
    updated: bool


def gradient_lines(steps: Sequence[LayerNorms], names: list[str], has_bias: list[bool]) -> str:
    """Rows of `gradients.csv` as text.

    One template for all of them: formatting is the larger part of the cost of a small step.
    """
    templates = {updated: _template(names, has_bias, updated) for updated in (True, False)}
    table = np.empty((len(steps), len(names), 1 + len(PER_LAYER)))
    for cells, one in zip(table, steps, strict=True):
        cells[:, 0], cells[:, 1:] = one.step, one.values.T
    lines = "".join([templates[one.updated] for one in steps])
    return lines % tuple(table.ravel().tolist())


def _template(names: list[str], has_bias: list[bool], updated: bool) -> str:
    number, none = "%.9g", "%.0s"
    return "".join(
        f"%d,{index},{name.replace('%', '%%')},{number},{number},{number if bias else none},"
        f"{number},{number if updated else none}\n"
        for index, (name, bias) in enumerate(zip(names, has_bias, strict=True), start=1)
    )
