"""How a shortcut meets its branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradexp.nn.bounds import Bounds, sum_of


class Sum(nn.Module):
    """X + scale * F(x)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, inputs: Tensor, branch: Tensor) -> Tensor:
        """Both of one shape, and so is the result."""
        return torch.add(inputs, branch, alpha=self.scale)

    def bounds(self, inputs: Bounds, branch: Bounds) -> Bounds:
        """What the sum can be."""
        return sum_of(inputs, branch.scaled(self.scale))
