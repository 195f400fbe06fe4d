"""What is measured at every training step: norms of gradients, weights and updates.

Everything stays on the device in one row per step and moves to the host in chunks: no step waits
for a figure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradexp.nn.network import Network
from gradexp.probes.numbers import norms, wide

SCALARS = ("loss", "accuracy", "grad_norm", "clip_coefficient")
PER_LAYER = ("grad_norm", "clipped_grad_norm", "bias_grad_norm", "weight_norm", "update_norm")


@dataclass(frozen=True)
class StepValues:
    """The figures of consecutive steps, on the host.

    Attributes:
        scalars: [steps, 4] float64, in the order of `SCALARS`.
        layers: [steps, 5, layers] float64, in the order of `PER_LAYER`.
    """

    scalars: np.ndarray
    layers: np.ndarray

    def __len__(self) -> int:
        return len(self.scalars)

    def until(self, count: int) -> StepValues:
        """The first `count` steps."""
        return StepValues(self.scalars[:count], self.layers[:count])

    @property
    def loss(self) -> np.ndarray:
        """Loss per step, [steps]."""
        losses: np.ndarray = self.scalars[:, 0]
        return losses


class StepProbe:
    """Collects the figures of up to `capacity` steps.

    Within a step, call `gradients` after the backward pass, `clipped` when the gradients have been
    changed, `before_update` and `after_update` around the optimizer's step, then `close`.
    """

    def __init__(self, network: Network, capacity: int) -> None:
        layers = network.layers()
        self.layer_count = len(layers)
        self.has_bias = [layer.bias is not None for layer in layers]
        self._weights = [layer.weight for layer in layers]
        biases = [layer.bias for layer in layers if layer.bias is not None]
        own = {id(parameter) for parameter in (*self._weights, *biases)}
        others = [one for one in network.parameters() if id(one) not in own]
        self._parameters = [*self._weights, *biases, *others]
        self._values = [weight.detach() for weight in self._weights]
        self._before = [torch.empty_like(value) for value in self._values]
        device = self._weights[0].device
        self._bias_at = torch.tensor([i for i, has in enumerate(self.has_bias) if has])
        self._bias_at = self._bias_at.to(device)
        self._nan = torch.full((), torch.nan, dtype=wide(device), device=device)
        size = len(SCALARS) + len(PER_LAYER) * self.layer_count
        self._rows = torch.empty((capacity, size), dtype=wide(device), device=device)
        self._filled = 0

    @property
    def gradient_tensors(self) -> list[Tensor]:
        """The gradients of all parameters; weights first, in layer order."""
        return [one.grad for one in self._parameters if one.grad is not None]

    def gradients(self, loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """Measure before clipping; returns the total norm of the gradient, a 0-d tensor."""
        self._loss = loss.detach()
        self._accuracy = (logits.detach().argmax(1) == targets).to(loss.dtype).mean()
        self._raw = self._clipped = norms(self.gradient_tensors)
        total = torch.linalg.vector_norm(self._raw)
        self._total = self._clipped_total = total
        self._weight_norms = norms(self._values)
        self._update_norms = self._nan.expand(self.layer_count)
        return total

    def total_norm(self) -> Tensor:
        """The L2 norm of all gradients as they are now, a 0-d tensor."""
        return torch.linalg.vector_norm(norms(self.gradient_tensors))

    def clipped(self) -> None:
        """Measure again what the optimizer will get."""
        self._clipped = norms(self.gradient_tensors)
        self._clipped_total = torch.linalg.vector_norm(self._clipped)

    def before_update(self) -> None:
        """Remember the weights."""
        torch._foreach_copy_(self._before, self._values)

    def after_update(self) -> None:
        """Measure how far the weights have moved."""
        torch._foreach_sub_(self._before, self._values)
        self._update_norms = norms(self._before)

    def close(self) -> None:
        """Store the step's row."""
        count, row = self.layer_count, self._rows[self._filled]
        ratio = torch.where(self._total == 0, 1.0, self._clipped_total / self._total)
        bias_norms = self._nan.expand(count).clone()
        bias_norms[self._bias_at] = self._raw[count : count + len(self._bias_at)]
        parts = (
            torch.stack(
                (self._loss.to(row.dtype), self._accuracy.to(row.dtype), self._total, ratio)
            ),
            self._raw[:count],
            self._clipped[:count],
            bias_norms,
            self._weight_norms,
            self._update_norms,
        )
        torch.cat(parts, out=row)
        self._filled += 1

    def take(self) -> StepValues:
        """Move the collected steps to the host and begin anew."""
        rows = self._rows[: self._filled].cpu().double().numpy().copy()
        self._filled = 0
        scalars, layers = rows[:, : len(SCALARS)], rows[:, len(SCALARS) :]
        return StepValues(scalars, layers.reshape(len(rows), len(PER_LAYER), self.layer_count))


def gradient_lines(
    steps: Iterable[tuple[int, np.ndarray]], names: list[str], has_bias: list[bool], updated: bool
) -> str:
    """Rows of `gradients.csv` as text, for (step, [5, layers]) pairs.

    Formatted by one template per step: formatting is the larger part of the cost of a small step.
    """
    number, none = "%.9g", "%.0s"
    template = "".join(
        f"%d,{index},{name.replace('%', '%%')},{number},{number},{number if bias else none},"
        f"{number},{number if updated else none}\n"
        for index, (name, bias) in enumerate(zip(names, has_bias, strict=True), start=1)
    )
    lines = []
    for step, values in steps:
        table = np.column_stack((np.full(values.shape[1], float(step)), values.T))
        lines.append(template % tuple(table.ravel().tolist()))
    return "".join(lines)
