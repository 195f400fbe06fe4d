"""What is measured at every training step: norms of gradients, weights and updates.

Everything stays on the device in one row per step and moves to the host in chunks: no step waits
for a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradexp.nn.observed import Observed
from gradexp.optim.parameters import Parameters
from gradexp.records.files import field_text
from gradexp.records.tables import GRADIENTS

KEYS = ("step", "layer_index", "layer")

SCALARS = ("loss", "accuracy", "grad_norm", "clip_coefficient")
FIGURES = tuple(name for name in GRADIENTS.column_names if name not in KEYS)
PER_LAYER = ("grad_norm", "clipped_grad_norm", "bias_grad_norm", "weight_norm", "update_norm")


@dataclass(frozen=True)
class StepValues:
    """The figures of consecutive steps, on the host.

    Attributes:
        scalars: [steps, 4] float64, in the order of `SCALARS`.
        layers: [steps, 5, layers] float64, in the order of `PER_LAYER`.
        updates: how many of the steps, from the first, ended in an update.
        classified: whether accuracies were measured.
        untold: positions of the steps whose loss nobody told; it is nan in the scalars.
    """

    scalars: np.ndarray
    layers: np.ndarray
    updates: int
    classified: bool = True
    untold: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.scalars)

    def ended_before_update(self, position: int) -> StepValues:
        """The steps up to that one, whose own update has been taken back."""
        return replace(
            self,
            scalars=self.scalars[: position + 1],
            layers=self.layers[: position + 1],
            updates=position,
        )

    def rows(self) -> list[dict[str, float]]:
        """The scalars of each step by column; without what is not known: accuracy, loss."""
        rows = [dict(zip(SCALARS, row, strict=True)) for row in self.scalars.tolist()]
        if not self.classified:
            for row in rows:
                del row["accuracy"]
        for position in self.untold:
            del rows[position]["loss"]
        return rows

    @property
    def loss(self) -> np.ndarray:
        """Loss per step, [steps]."""
        losses: np.ndarray = self.scalars[:, 0]
        return losses

    @property
    def bad_loss(self) -> np.ndarray:
        """Where a loss is not finite, [steps]; one that nobody told is not bad."""
        bad: np.ndarray = ~np.isfinite(self.loss)
        bad[list(self.untold)] = False
        return bad


@dataclass
class Measured:
    """One step's figures, still on the device; norms are those of pieces, see `Parameters`.

    Attributes:
        raw: norms of the gradients as the backward pass left them.
        weights: of the weights before the update.
        loss: 0-d; None until it is known.
        predicted: classes [n]; None where they are not known.
        targets: true classes [n], alike.
        unclipped: of the gradients when L1 was added; else None.
        clipped: of the gradients when they were changed for good; else None.
        changes: of how far the update moved the weights; None without an update.
    """

    raw: Tensor
    weights: Tensor
    loss: Tensor | None = None
    predicted: Tensor | None = None
    targets: Tensor | None = None
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

    def __init__(self, layers: Sequence[Observed], parameters: Parameters) -> None:
        self._parameters = parameters
        at = {id(one): index for index, one in enumerate(parameters.tensors)}
        self._weights_of = _membership([layer.weights for layer in layers], at)
        self._biases_of = _membership([layer.biases for layer in layers], at)
        self._steps: list[Measured] = []

    @property
    def total_norm(self) -> Tensor:
        """The L2 norm of all gradients that are about to be clipped, a 0-d tensor."""
        now = self._steps[-1]
        total: Tensor = torch.linalg.vector_norm(
            now.raw if now.unclipped is None else now.unclipped
        )
        return total

    def gradients(
        self, loss: Tensor, predicted: Tensor | None = None, targets: Tensor | None = None
    ) -> None:
        """Measure gradients and weights after the backward pass."""
        self.begin(self._parameters.gradient_norms())
        now = self._steps[-1]
        now.loss, now.predicted, now.targets = loss.detach(), predicted, targets

    def begin(self, raw: Tensor) -> None:
        """A step of which so far only the gradients were measured: now the weights are."""
        weights = self._parameters.weight_norms()
        self._parameters.remember()
        self._steps.append(Measured(raw, weights))

    @property
    def now(self) -> Measured:
        """The newest step."""
        return self._steps[-1]

    def regularized(self) -> None:
        """Measure what will be clipped, L1 added."""
        self._steps[-1].unclipped = self._parameters.gradient_norms()

    def clipped(self, scale: Tensor | None = None) -> None:
        """Measure again what the optimizer will get; divided by the scale, if there is one."""
        norms = self._parameters.gradient_norms()
        self._steps[-1].clipped = norms if scale is None else norms / scale

    def updated(self) -> None:
        """Measure how far the weights have moved since `gradients`."""
        self._steps[-1].changes = self._parameters.change_norms()

    def gradient_norms_of(self, raw: Tensor) -> np.ndarray:
        """From norms of pieces to those of each layer's weight gradient, [layers]."""
        norms: np.ndarray = np.sqrt(_together(self._by_tensor([raw]), self._weights_of))[0]
        return norms

    def take(self) -> StepValues:
        """Move the collected steps, at least one, to the host and begin anew."""
        steps, self._steps = self._steps, []
        raw = self._by_tensor([step.raw for step in steps])
        unclipped = self._measured_or([step.unclipped for step in steps], raw)
        clipped = self._measured_or([step.clipped for step in steps], unclipped)
        weights = self._by_tensor([step.weights for step in steps])
        moved = [step.changes for step in steps if step.changes is not None]
        changes = np.full_like(weights, np.nan)
        if moved:
            changes[: len(moved)] = self._by_tensor(moved)
        layers = (
            _together(raw, self._weights_of),
            _together(clipped, self._weights_of),
            _together(raw, self._biases_of),
            _together(weights, self._weights_of),
            _together(changes, self._weights_of),
        )
        scalars = self._scalars(steps, raw, unclipped, clipped)
        classified = all(step.predicted is not None for step in steps)
        untold = frozenset(index for index, step in enumerate(steps) if step.loss is None)
        return StepValues(scalars, np.sqrt(np.stack(layers, 1)), len(moved), classified, untold)

    def _measured_or(self, rows: list[Tensor | None], otherwise: np.ndarray) -> np.ndarray:
        """Squares of gradients that were changed within the steps; or what they were before."""
        if all(one is None for one in rows):
            return otherwise
        found = otherwise.copy()
        measured = [index for index, one in enumerate(rows) if one is not None]
        found[measured] = self._by_tensor([one for one in rows if one is not None])
        return found

    def _by_tensor(self, rows: list[Tensor]) -> np.ndarray:
        """From norms of pieces to squares of norms of tensors, [steps, tensors]."""
        if len({one.dtype for one in rows}) > 1:
            rows = [one.double() for one in rows]
        squares = np.square(torch.stack(rows).cpu().double().numpy())
        return self._parameters.by_tensor(squares)

    @staticmethod
    def _scalars(
        steps: list[Measured], raw: np.ndarray, unclipped: np.ndarray, clipped: np.ndarray
    ) -> np.ndarray:
        """The columns of `SCALARS`, [steps, 4] float64."""
        total, before, after = (np.sqrt(one.sum(1)) for one in (raw, unclipped, clipped))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where(before == 0, 1.0, after / before)
        return np.stack((_losses(steps), _accuracy(steps), total, ratio), 1)


def _losses(steps: Sequence[Measured]) -> np.ndarray:
    """The loss of each step, [steps]; nan where nobody told it."""
    told = [index for index, step in enumerate(steps) if step.loss is not None]
    losses = np.full(len(steps), np.nan)
    if told:
        loss = torch.stack([step.loss for step in steps if step.loss is not None])
        losses[told] = loss.cpu().double().numpy()
    return losses


def _accuracy(steps: Sequence[Measured]) -> np.ndarray:
    """Share of each batch that was classified right, [steps]; nan where that was not measured."""
    predicted = [step.predicted for step in steps if step.predicted is not None]
    targets = [step.targets for step in steps if step.targets is not None]
    if len(predicted) < len(steps):
        return np.full(len(steps), np.nan)
    if len({len(one) for one in targets}) > 1:  # a last batch may be smaller
        pairs = zip(predicted, targets, strict=True)
        return torch.stack([(one == true).double().mean() for one, true in pairs]).cpu().numpy()
    accuracy: np.ndarray = (torch.stack(predicted) == torch.stack(targets)).cpu().numpy().mean(1)
    return accuracy


def _membership(of_layers: Sequence[Sequence[Tensor]], at: Mapping[int, int]) -> list[list[int]]:
    """Of each layer, the positions of its tensors."""
    return [[at[id(one)] for one in tensors] for tensors in of_layers]


def _together(squares: np.ndarray, members: Sequence[Sequence[int]]) -> np.ndarray:
    """Sums over the tensors of each layer, [steps, layers]; nan for a layer that has none."""
    found = np.full((len(squares), len(members)), np.nan)
    for layer, tensors in enumerate(members):
        if tensors:
            found[:, layer] = squares[:, tensors].sum(1)
    return found


@dataclass(frozen=True)
class LayerNorms:
    """One step's figures per layer, [5, layers], and whether the step ended in an update."""

    step: int
    values: np.ndarray
    updated: bool


def gradient_lines(steps: Sequence[LayerNorms], layers: Sequence[Observed]) -> str:
    """Rows of `gradients.csv` as text.

    One template for all of them: formatting is the larger part of the cost of a small step.
    """
    templates = {updated: _template(layers, updated=updated) for updated in (True, False)}
    order = [PER_LAYER.index(name) for name in FIGURES]
    table = np.empty((len(steps), len(layers), 1 + len(order)))
    for cells, one in zip(table, steps, strict=True):
        cells[:, 0], cells[:, 1:] = one.step, one.values[order].T
    lines = "".join([templates[one.updated] for one in steps])
    return lines % tuple(table.ravel().tolist())


def _template(layers: Sequence[Observed], *, updated: bool) -> str:
    """One step's lines; what a layer does not have is an empty cell."""
    lines = []
    for index, layer in enumerate(layers, start=1):
        trained = any(one.requires_grad for one in layer.weights)
        has = {
            "grad_norm": trained,
            "clipped_grad_norm": trained,
            "bias_grad_norm": any(one.requires_grad for one in layer.biases),
            "weight_norm": True,
            "update_norm": updated,
        }
        cells = ["%.9g" if has[name] else "%.0s" for name in FIGURES]
        name = field_text(layer.name).replace("%", "%%")
        lines.append(",".join(["%d", str(index), name, *cells]) + "\n")
    return "".join(lines)
