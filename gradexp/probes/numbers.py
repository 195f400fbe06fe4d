"""Reductions that keep tiny and huge values: the ones that float32 arithmetic loses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Squares of entries below 1e-22 underflow float32. Under a norm of 1e-15 such entries could count;
# above it they cannot. Squares of entries above 1e18 overflow.
SAFE = (1e-15, 1e18)
ROW = 4096  # values that one float32 sum may run over: longer ones drift
PART = 2**17  # values at a time: their float64 copies stay in the processor's cache


def wide(device: torch.device) -> torch.dtype:
    """The widest floating type of a device: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def norms(tensors: list[Tensor]) -> Tensor:
    """The L2 norm of each tensor, [k] float64, right for entries down to 1e-38."""
    measured = Norms(tensors)
    measured.load(tensors)
    rows = measured.measure().cpu().double().numpy()
    return torch.from_numpy(measured.combine(rows[None])[0])


class Norms:
    """L2 norms of tensors of fixed shapes, all of them with one reduction.

    The tensors are laid into one buffer, each filling whole rows of `ROW` values. Norms of rows
    are measured on the device, and combined on the host, for many steps at once.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        counts = [-(-tensor.numel() // ROW) for tensor in tensors]
        self._first_rows = np.cumsum([0, *counts[:-1]])
        self._rows = torch.zeros(sum(counts), ROW, device=tensors[0].device)
        flat = self._rows.view(-1)
        self._views = [
            flat[row * ROW :][: tensor.numel()].view(tensor.shape)
            for row, tensor in zip(self._first_rows.tolist(), tensors, strict=True)
        ]

    def load(self, tensors: list[Tensor]) -> None:
        """Take the tensors' values."""
        torch._foreach_copy_(self._views, tensors)

    def subtract(self, tensors: list[Tensor]) -> None:
        """Subtract the tensors from the values taken before."""
        torch._foreach_sub_(self._views, tensors)

    def measure(self) -> Tensor:
        """Norms of the rows, [rows] float64 (float32 on MPS), right for entries down to 1e-38.

        No host sync on CUDA. On the CPU, where looking costs nothing, float32 sums serve unless a
        row's squares may have left their range; then float64 sums do.
        """
        return ROW_NORMS.get(self._rows.device.type, double_row_norms)(self._rows)

    def combine(self, rows: np.ndarray) -> np.ndarray:
        """From norms of rows to norms of tensors: [steps, rows] to [steps, k] float64."""
        squares = np.add.reduceat(np.square(rows), self._first_rows, axis=1)
        combined: np.ndarray = np.sqrt(squares)
        return combined


def double_row_norms(rows: Tensor) -> Tensor:
    """Norms of the rows in float64."""
    measured: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return measured


def guarded_row_norms(rows: Tensor) -> Tensor:
    """Norms of the rows in float32, and in float64 where those are in doubt."""
    single: Tensor = torch.linalg.vector_norm(rows, dim=1)
    result = single.double()
    low, high = single.aminmax()
    if not (low.item() > SAFE[0] and high.item() < SAFE[1]):
        doubtful = ~((single > SAFE[0]) & (single < SAFE[1]))
        result[doubtful] = double_row_norms(rows[doubtful])
    return result


def scaled_row_norms(rows: Tensor) -> Tensor:
    """Norms of the rows in float32, each row first divided by its largest entry."""
    largest = rows.abs().amax(1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    scaled: Tensor = torch.linalg.vector_norm(rows / largest, dim=1)
    return scaled * largest[:, 0]


ROW_NORMS = {"cpu": guarded_row_norms, "mps": scaled_row_norms}


class Moments:
    """Mean and standard deviation over batches of values, in float64 (Chan et al. 1979).

    Never the difference of large sums: a collapsed signal really shows a deviation of 0.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, values: Tensor) -> None:
        """Take in all values of a tensor."""
        for part in torch.split(values.flatten(), PART):
            self._add(part.to(wide(part.device)))

    def _add(self, part: Tensor) -> None:
        mean = part.mean()
        centred = part - mean
        count = self.count + part.numel()
        delta = mean - self.mean
        self._squares = (
            self._squares
            + torch.dot(centred, centred)
            + delta**2 * (self.count * part.numel() / count)
        )
        self.mean = self.mean + delta * (part.numel() / count)
        self.count = count

    @property
    def std(self) -> Tensor:
        """Population standard deviation of everything taken in."""
        return torch.sqrt(torch.as_tensor(self._squares) / self.count)
