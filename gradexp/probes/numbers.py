"""Reductions that keep tiny and huge values: the ones that float32 arithmetic loses."""

from __future__ import annotations

import torch
from torch import Tensor

from gradexp.nn.flat import LONGEST_ROW

# Squares of entries below 1e-22 underflow float32. Under a norm of 1e-15 such entries could count;
# above it they cannot. Squares of entries above 1e18 overflow.
SAFE = (1e-15, 1e18)
KEPT = 0.5  # share of a sum that a subtraction must leave for its digits to be trusted
PART = 2**17  # values at a time: their float64 copies stay in the processor's cache


def wide(device: torch.device) -> torch.dtype:
    """The widest floating type of a device: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def row_norms(rows: Tensor) -> Tensor:
    """L2 norms over the last axis, float64 or float32, right for entries down to 1e-38.

    No host sync on CUDA. On the CPU, where looking costs nothing, float32 sums serve unless the
    squares of a row may have left their range; then float64 sums do. Rows should be short: over
    many thousands of values float32 sums drift.
    """
    return ROW_NORMS.get(rows.device.type, double_row_norms)(rows)


def in_rows(values: Tensor) -> Tensor:
    """[series, n, ...] as rows of moderate length: [series, rows, row length]."""
    length = values[0, 0].numel()
    while length > LONGEST_ROW and length % 2 == 0:
        length //= 2
    return values.reshape(len(values), -1, length)


def double_row_norms(rows: Tensor) -> Tensor:
    """Norms of the rows in float64."""
    measured: Tensor = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)
    return measured


def guarded_row_norms(rows: Tensor) -> Tensor:
    """Norms of the rows in float32, and in float64 where those are in doubt."""
    single: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    if all_safe(single):
        return single
    result = single.double()
    doubtful = ~((single > SAFE[0]) & (single < SAFE[1]))
    result[doubtful] = double_row_norms(rows[doubtful])
    return result


def all_safe(norms: Tensor) -> bool:
    """Whether norms measured in float32 can be trusted, all of them."""
    low, high = norms.aminmax()
    return low.item() > SAFE[0] and high.item() < SAFE[1]


def scaled_row_norms(rows: Tensor) -> Tensor:
    """Norms of the rows in float32, each row first divided by its largest entry."""
    largest = rows.abs().amax(-1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    scaled: Tensor = torch.linalg.vector_norm(rows / largest, dim=-1)
    return scaled * largest[..., 0]


ROW_NORMS = {"cpu": guarded_row_norms, "mps": scaled_row_norms}


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
        for part in torch.split(values.flatten(1), max(1, PART // len(values)), dim=1):
            self._add_wide(part.to(self.mean.dtype))
        return False

    def _add_single(self, values: Tensor) -> bool:
        """Take in float32 values by float32 sums; False, and nothing done, if that is unsafe."""
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
        delta = mean - self.mean
        self._squares += squares + delta**2 * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total

    @property
    def std(self) -> Tensor:
        """Population standard deviation of everything taken in, [series]."""
        return torch.sqrt(self._squares / self.count)
