"""L2 norms that keep tiny and huge values: rows of moderate length, and their reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LONGEST_ROW = 4096  # values that one float32 sum may run over: longer ones drift
SHORTEST_ROW = 64
WASTE = 0.25  # how much longer than its values a matrix of rows may be

# Squares of entries below 1e-22 underflow float32. Under a norm of 1e-15 such entries could count;
# above it they cannot. Squares of entries above 1e18 overflow.
SAFE = (1e-15, 1e18)
HALF = {torch.float16, torch.bfloat16}  # too short for a sum


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


def row_length(count: int) -> int:
    """The longest row that serves, if so many values are halved until it does."""
    while count > LONGEST_ROW and count % 2 == 0:
        count //= 2
    return count


def row_norms(rows: Tensor) -> Tensor:
    """L2 norms over the last axis, float64 or float32, right for entries down to 1e-38.

    No host sync on CUDA. On the CPU, where looking costs nothing, float32 sums serve unless the
    squares of a row may have left their range; then float64 sums do. Rows should be short: over
    many thousands of values float32 sums drift.
    """
    return ROW_NORMS.get(rows.device.type, double_row_norms)(rows)


def norms_of_rows(matrices: Sequence[Tensor]) -> Tensor:
    """L2 norms of the rows of several matrices, one after the other, as precise as `row_norms`.

    In the usual case the CPU looks once, not once a matrix, whether float32 sums served.
    """
    if matrices[0].device.type == "cpu":
        norms = torch.cat([_single_row_norms(one) for one in matrices])
        if all_safe(norms):
            return norms
    return torch.cat([row_norms(one) for one in matrices])


def _single_row_norms(rows: Tensor) -> Tensor:
    """In float32; of float64 rows in float64."""
    kind = torch.float32 if rows.dtype in HALF else rows.dtype
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1, dtype=kind)
    return norms


def double_row_norms(rows: Tensor) -> Tensor:
    """Norms of the rows in float64."""
    measured: Tensor = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)
    return measured


def guarded_row_norms(rows: Tensor) -> Tensor:
    """Norms of the rows in float32, and in float64 where those are in doubt."""
    single = _single_row_norms(rows)
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
    # Where there is no float64: then no square leaves the range, whatever the size of the entries.
    largest = rows.abs().amax(-1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    scaled: Tensor = torch.linalg.vector_norm(rows / largest, dim=-1)
    return scaled * largest[..., 0]


ROW_NORMS = {"cpu": guarded_row_norms, "mps": scaled_row_norms}
