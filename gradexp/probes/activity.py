"""Where an activation is exactly flat."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from gradexp.probes.numbers import in_rows


def inactive(pre: Tensor, flat: tuple[tuple[float, float], ...]) -> Tensor:
    """1 where pre lies in a flat interval: the derivative is exactly 0; else 0, and 0 for NaN.

    In the type of pre: comparing into floats takes a quarter of the time of comparing into bools.
    """
    if not flat:
        return torch.zeros_like(pre)
    return functools.reduce(torch.maximum, [_within(pre, *interval) for interval in flat])


def _within(pre: Tensor, low: float, high: float) -> Tensor:
    """Infinite ends need no comparison."""
    if high == math.inf:
        return torch.ge(pre, low, out=torch.empty_like(pre))
    mask = torch.le(pre, high, out=torch.empty_like(pre))
    return mask if low == -math.inf else mask.mul_(pre >= low)


def counts(mask: Tensor) -> Tensor:
    """How many entries of each layer are 1, the others 0: [layers, n, ...] to int64 [layers].

    Sums of a row are exact in float32.
    """
    return in_rows(mask).sum(2).long().sum(1)


def others_than_units(values: Tensor) -> list[int]:
    """All axes of [layers, n, units, ...] but layers and units."""
    return [axis for axis in range(values.dim()) if axis not in {0, 2}]
