"""Intervals: what a value can be, widened by what float32 arithmetic may add.

Parts that have a rule for intervals (joins of shortcuts) state it here, in float64; certificates
use it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 2.0**-24  # relative error of one float32 operation
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Bounds:
    """Lower and upper bound of each value, float64 [1, units, ...]."""

    low: Tensor
    high: Tensor

    def widened(self, error: Tensor) -> Bounds:
        """Both bounds moved outward, and kept within what a finite float32 can be."""
        return Bounds(
            (self.low - error).clamp(min=-LARGEST), (self.high + error).clamp(max=LARGEST)
        )

    def scaled(self, factor: Tensor | float) -> Bounds:
        """The bounds of factor * value."""
        ends = self.low * factor, self.high * factor
        return Bounds(torch.minimum(*ends), torch.maximum(*ends))

    @property
    def largest(self) -> Tensor:
        """The largest magnitude each value can have."""
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def unknown(self) -> Bounds:
        """Anything that is finite, in the same shape."""
        return Bounds(torch.full_like(self.low, -LARGEST), torch.full_like(self.high, LARGEST))


def sum_of(inputs: Bounds, branch: Bounds) -> Bounds:
    """A shortcut; what is nowhere negative has a sum that is not, however it is rounded."""
    error = 2 * ROUNDING * (inputs.largest + branch.largest)
    wide = Bounds(inputs.low + branch.low, inputs.high + branch.high).widened(error)
    never_below = (inputs.low >= 0) & (branch.low >= 0)
    return Bounds(torch.where(never_below, wide.low.clamp(min=0), wide.low), wide.high)
