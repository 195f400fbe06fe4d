"""Means and deviations that keep tiny and huge values: the ones that float32 arithmetic loses."""

from __future__ import annotations

import torch
from torch import Tensor

from gradexp.optim.rows import all_safe, row_length, row_norms

__all__ = ["Moments", "in_rows", "row_norms", "wide"]

KEPT = 0.5  # share of a sum that a subtraction must leave for its digits to be trusted
PART = 2**17  # values at a time: their float64 copies stay in the processor's cache
PART_ELSEWHERE = 2**24  # on other devices every operation has a price of its own


def wide(device: torch.device) -> torch.dtype:
    """The widest floating type of a device: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def in_rows(values: Tensor) -> Tensor:
    """[series, n, ...] as rows of moderate length: [series, rows, row length]."""
    return values.reshape(len(values), -1, row_length(values[0, 0].numel()))


class Moments:
    """Mean and standard deviation of several series of values, in batches (Chan et al. 1979).

    Never the difference of large sums: a collapsed signal really shows a deviation of 0. Batches
    combine in float64. Within one, on the CPU, float32 serves where it is right to 1e-6; else, and
    on other devices, float64 does.

    Attributes:
        count: how many values of each series were taken in.
        mean: of each series, float64 [series].
    """

    def __init__(self, series: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(series, dtype=wide(device), device=device)
        self._squares = torch.zeros_like(self.mean)

    def add(self, values: Tensor) -> bool:
        """Take in [series, rows, row length]; returns whether all of them are finite for sure."""
        if values.device.type == "cpu" and self._add_single(values):
            return True
        at_once = PART if values.device.type == "cpu" else PART_ELSEWHERE
        for part in torch.split(values.flatten(1), max(1, at_once // len(values)), dim=1):
            self._add_wide(part.to(self.mean.dtype))
        return False

    def _add_single(self, values: Tensor) -> bool:
        """Take in float32 values by float32 sums; False, and nothing done, if that is unsafe."""
        # Distances from a value near the mean, not from 0: a small spread around a large mean would
        # drown in the rounding of the squares. What the pivot is off by is taken out again.
        pivot = values.mean((1, 2), keepdim=True)
        centred = values - pivot
        distances = torch.linalg.vector_norm(centred, dim=2)
        if not all_safe(distances):
            return False
        count = values[0].numel()
        rest = centred.sum((1, 2)).double() / count
        around_pivot = distances.double().square().sum(1)
        squares = around_pivot - count * rest**2
        # Where rounding moved the pivot further than the values reach, little is left of them.
        if not bool((squares > KEPT * around_pivot).all()):
            return False
        self._merge(count, pivot[:, 0, 0].double() + rest, squares)
        return True

    def _add_wide(self, values: Tensor) -> None:
        mean = values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        self._merge(values.shape[1], mean, squares)

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Join `count` more values of each series, whose deviations have these squares."""
        total = self.count + count
        # Through the difference of the means: sums of squares over all batches would cancel.
        delta = mean - self.mean
        self._squares += squares + delta**2 * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total

    @property
    def std(self) -> Tensor:
        """Population standard deviation of everything taken in, [series]."""
        return torch.sqrt(self._squares / self.count)
