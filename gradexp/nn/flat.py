"""All parameters of a net in one tensor and all gradients in another.

Small nets feel every operation, large ones every pass through memory: what is measured and updated
at each step lies side by side, so that one operation serves all of it and nothing is collected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gradexp.nn.network import Network

LONGEST_ROW = 4096  # values that one float32 sum may run over: longer ones drift
SHORTEST_ROW = 64
WASTE = 0.25  # how much longer than its values the matrix may be


class Rows:
    """Tensors laid into a matrix, each filling whole rows; the rest of its last row is zero.

    Attributes:
        length: values in a row: a power of two, small where tensors are.
        first: the first row of each tensor, and the row after the last.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.length = LONGEST_ROW
        while self.length > SHORTEST_ROW and self._wasted(sizes) > WASTE * sum(sizes):
            self.length //= 2
        self.first = np.cumsum([0, *(-(-size // self.length) for size in sizes)])

    def _wasted(self, sizes: Sequence[int]) -> int:
        return sum(-size % self.length for size in sizes)

    def place(self, matrix: Tensor, index: int, shape: tuple[int, ...]) -> Tensor:
        """The part of the matrix that is tensor `index`, in its own shape."""
        start = int(self.first[index]) * self.length
        return matrix.view(-1)[start : start + math.prod(shape)].view(shape)


class Flat:
    """A net's parameters and gradients as matrices; they stay the memory that the net works with.

    The first weight, if it is a matrix, lies transposed: its own gradient is then found up to twice
    as fast, and that of the net's inputs, which would be found slower, nobody asks for.

    Attributes:
        parameters: the net's own: `weights` of its layers first, in their order, then `biases`,
            then norms' and activations'.
        rows: where each parameter lies.
        values: the parameters [rows, row length].
        gradients: their gradients, alike; backward passes add to them until `clear`.
        weight_values: the rows of `values` that are weights.
        weight_gradients: the rows of `gradients` that are theirs.
    """

    def __init__(self, network: Network) -> None:
        layers = network.layers()
        self.weights = [layer.weight for layer in layers]
        self.biases = [layer.bias for layer in layers if layer.bias is not None]
        own = {id(parameter) for parameter in (*self.weights, *self.biases)}
        others = [one for one in network.parameters() if id(one) not in own]
        self.parameters = [*self.weights, *self.biases, *others]
        self.rows = Rows([parameter.numel() for parameter in self.parameters])
        self._lay_out(self.weights[0].device)

    def _lay_out(self, device: torch.device) -> None:
        rows, weight_rows = int(self.rows.first[-1]), int(self.rows.first[len(self.weights)])
        self.values = torch.zeros(rows, self.rows.length, device=device)
        self.gradients = torch.zeros_like(self.values)
        self.weight_values = self.values[:weight_rows]
        self.weight_gradients = self.gradients[:weight_rows]
        self._before = torch.zeros_like(self.weight_values)
        for index, parameter in enumerate(self.parameters):
            parameter.data = self._place(self.values, index).copy_(parameter.data)
            parameter.grad = self._place(self.gradients, index)

    def _place(self, matrix: Tensor, index: int) -> Tensor:
        shape = self.parameters[index].shape
        if index == 0 and len(shape) == 2:  # noqa: PLR2004  a linear map
            return self.rows.place(matrix, index, shape[::-1]).T
        return self.rows.place(matrix, index, shape)

    def whole(self, *, apart: bool) -> tuple[list[Tensor], list[Tensor]]:
        """All parameters as one, or as two: the weights, and if there are any, the others.

        Updating these updates the net's own; no graph knows of them. Meant for optimizers that
        treat every entry alike.
        """
        split = len(self.weight_values) if apart else len(self.values)
        weights, others = (
            [_parameter(values, gradients)] if len(values) else []
            for values, gradients in (
                (self.values[:split], self.gradients[:split]),
                (self.values[split:], self.gradients[split:]),
            )
        )
        return weights, others

    def clear(self) -> None:
        """Set all gradients to zero."""
        self.gradients.zero_()

    def remember_weights(self) -> None:
        """Keep the weights as they are before an update."""
        self._before.copy_(self.weight_values)

    def weight_change(self) -> Tensor:
        """What was remembered minus the weights now, [rows of weights, row length]; once only."""
        return self._before.sub_(self.weight_values)


def _parameter(values: Tensor, gradients: Tensor) -> Tensor:
    parameter = nn.Parameter(values, requires_grad=False)
    parameter.grad = gradients
    return parameter
