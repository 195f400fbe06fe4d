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

from gradexp.nn.flat import Flat
from gradexp.nn.network import Network
from gradexp.probes.numbers import row_norms

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
    """One step's figures, still on the device; norms are those of rows, see `Flat`.

    Attributes:
        loss: 0-d.
        predicted: classes [n].
        targets: true classes [n].
        raw: norms of the gradients as the backward pass left them.
        weights: of the weights before the update.
        unclipped: of the gradients when L1 was added; else None.
        clipped: of the gradients when they were changed for good; else None.
        changes: of how far the update moved the weights; None without an update.
    """

    loss: Tensor
    predicted: Tensor
    targets: Tensor
    raw: Tensor
    weights: Tensor
    unclipped: Tensor | None = None
    clipped: Tensor | None = None
    changes: Tensor | None = None


class StepProbe:
    """Collects the figures of steps until they are taken.

    Within a step, call `gradients` after the backward pass, `regularized` when L1 has been added,
    `clipped` when the gradients have been changed for good, `updated` after the optimizer's step.
    A step only measures, and measures what is still in the processor's cache; what can be computed
    from its figures is computed for many steps at once in `take`.
    """

    def __init__(self, network: Network, flat: Flat) -> None:
        layers = network.layers()
        self._flat = flat
        self._layers = len(layers)
        self._bias_at = [index for index, layer in enumerate(layers) if layer.bias is not None]
        self._first_rows = flat.rows.first[:-1]
        self._steps: list[Measured] = []

    @property
    def total_norm(self) -> Tensor:
        """The L2 norm of all gradients that are about to be clipped, a 0-d tensor."""
        now = self._steps[-1]
        total: Tensor = torch.linalg.vector_norm(
            now.raw if now.unclipped is None else now.unclipped
        )
        return total

    def gradients(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Measure gradients and weights after the backward pass."""
        raw, weights = row_norms(self._flat.gradients), row_norms(self._flat.weight_values)
        self._flat.remember_weights()
        predicted = logits.detach().argmax(1)
        self._steps.append(Measured(loss.detach(), predicted, targets, raw, weights))

    def regularized(self) -> None:
        """Measure what will be clipped, L1 added."""
        self._steps[-1].unclipped = row_norms(self._flat.gradients)

    def clipped(self) -> None:
        """Measure again what the optimizer will get."""
        self._steps[-1].clipped = row_norms(self._flat.gradients)

    def updated(self) -> None:
        """Measure how far the weights have moved since `gradients`."""
        self._steps[-1].changes = row_norms(self._flat.weight_change())

    def take(self) -> StepValues:
        """Move the collected steps, at least one, to the host and begin anew."""
        steps, self._steps = self._steps, []
        raw = self._by_tensor([step.raw for step in steps])
        unclipped = self._measured_or([step.unclipped for step in steps], raw)
        clipped = self._measured_or([step.clipped for step in steps], unclipped)
        weights = self._by_tensor([step.weights for step in steps])
        changes = np.full_like(weights, np.nan)
        moved = [step.changes for step in steps if step.changes is not None]
        if moved:
            changes[: len(moved)] = self._by_tensor(moved)
        gradients = raw[:, : self._layers], clipped[:, : self._layers], self._biases(raw)
        return StepValues(
            self._scalars(steps, raw, unclipped, clipped),
            np.stack((*gradients, weights, changes), 1),
            len(moved),
        )

    def _measured_or(self, rows: list[Tensor | None], otherwise: np.ndarray) -> np.ndarray:
        """Norms of gradients that were changed within the steps; or what they were before."""
        measured = [one for one in rows if one is not None]
        return self._by_tensor(measured) if measured else otherwise

    def _by_tensor(self, rows: list[Tensor]) -> np.ndarray:
        """From norms of rows to norms of the first tensors that fill them, [steps, tensors]."""
        if len({one.dtype for one in rows}) > 1:
            rows = [one.double() for one in rows]
        squares = np.square(torch.stack(rows).cpu().double().numpy())
        first = self._first_rows[self._first_rows < squares.shape[1]]
        norms: np.ndarray = np.sqrt(np.add.reduceat(squares, first, axis=1))
        return norms

    def _biases(self, raw: np.ndarray) -> np.ndarray:
        """Norms of the biases' gradients [steps, layers]; NaN for a layer without."""
        biases = np.full((len(raw), self._layers), np.nan)
        biases[:, self._bias_at] = raw[:, self._layers :][:, : len(self._bias_at)]
        return biases

    @staticmethod
    def _scalars(
        steps: list[Measured], raw: np.ndarray, unclipped: np.ndarray, clipped: np.ndarray
    ) -> np.ndarray:
        """The columns of `SCALARS`, [steps, 4] float64."""
        loss = torch.stack([step.loss for step in steps]).cpu().double().numpy()
        right = torch.stack([step.predicted for step in steps]) == torch.stack(
            [step.targets for step in steps]
        )
        accuracy = right.cpu().numpy().mean(1)
        total, before, after = (np.linalg.norm(one, axis=1) for one in (raw, unclipped, clipped))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where(before == 0, 1.0, after / before)
        return np.stack((loss, accuracy, total, ratio), 1)


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
