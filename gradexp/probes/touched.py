"""Which weights have a gradient at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradexp.nn.observed import Observed


class Touched:
    """Which weights have had a gradient other than 0, over the batches of one probe.

    Attributes:
        open: positions of weights of which some entry had none yet; the others need no asking.
    """

    def __init__(self, layers: Sequence[Observed]) -> None:
        # A weight that is computed from several parameters has no gradient of its own.
        self._at = [
            index
            for index, layer in enumerate(layers)
            if len(layer.weights) == 1 and layer.weights[0].requires_grad
        ]
        self._weights = [layers[index].weights[0] for index in self._at]
        self._count = len(layers)
        self._sums = [torch.zeros_like(weight) for weight in self._weights]  # of magnitudes
        self.open = list(range(len(self._weights)))

    @property
    def weights(self) -> list[Tensor]:
        """The open weights: those whose gradient `add` wants."""
        return [self._weights[index] for index in self.open]

    def add(self, gradients: list[Tensor | None]) -> None:
        """Take in a batch: the gradients of the open weights, which are overwritten."""
        found = [(index, one) for index, one in zip(self.open, gradients, strict=True)]
        known = [(index, one) for index, one in found if one is not None]
        if not known:
            return
        sums = [self._sums[index] for index, _ in known]
        magnitudes = [one for _, one in known]
        torch._foreach_abs_(magnitudes)
        torch._foreach_add_(sums, magnitudes)
        least = torch.stack([one.amin() for one in sums]).tolist()
        closed = {index for (index, _), low in zip(known, least, strict=True) if low != 0}
        self.open = [index for index in self.open if index not in closed]

    def shares_without(self) -> list[float | None]:
        """Of each layer, the share of weights that had none; None where none can be had."""
        shares: list[float | None] = [None] * self._count
        if not self._sums:
            return shares
        touched = torch.stack([sums.count_nonzero() for sums in self._sums]).tolist()
        for index, sums, count in zip(self._at, self._sums, touched, strict=True):
            shares[index] = (sums.numel() - count) / sums.numel()
        return shares
