"""From anybody's loss to one that is summed over examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradexp.probes.looking import length, split

Loss: TypeAlias = Callable[[Any, Any], Tensor]
Reduction = Literal["mean", "sum", "unknown"]
AGREEMENT = 1e-4  # relative: two ways to sum the same float32 losses


def reduction_of(loss: Loss, outputs: Any, targets: Any) -> Reduction:
    """Whether a loss is the mean or the sum of its examples' losses: asked of two parts of them.

    A loss that is neither (weighted by class, contrastive) is of unknown reduction.
    """
    count = length(targets)
    if count < 2:  # noqa: PLR2004  one example has no parts
        return "mean"
    with torch.no_grad():
        whole = float(loss(outputs, targets))
        pairs = list(zip(split(outputs, 2), split(targets, 2), strict=True))
        parts = [float(loss(*pair)) for pair in pairs]
    sizes = [length(part) for _, part in pairs]
    mean = sum(part * size for part, size in zip(parts, sizes, strict=True)) / count
    if math.isclose(whole, mean, rel_tol=AGREEMENT) or not math.isfinite(whole):
        return "mean"
    return "sum" if math.isclose(whole, sum(parts), rel_tol=AGREEMENT) else "unknown"


@dataclass(frozen=True)
class SummedLoss:
    """A loss summed over examples; one of unknown reduction is taken to be a mean."""

    loss: Loss
    reduction: Reduction

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """0-d."""
        found = self.loss(outputs, targets)
        return found if self.reduction == "sum" else found * length(targets)
