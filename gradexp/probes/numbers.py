"""Reductions that keep tiny and huge values: the ones that float32 arithmetic loses."""

from __future__ import annotations

import torch
from torch import Tensor

# Squares of entries below 1e-22 underflow float32. Under a norm of 1e-15 such entries could count;
# above it they cannot. Squares of entries above 1e18 overflow.
SAFE_SQUARES = (1e-30, 1e36)
PART = 2**17  # values at a time: their float64 copies stay in the processor's cache
BLOCK = 2**15


def wide(device: torch.device) -> torch.dtype:
    """The widest floating type of a device: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def norms(tensors: list[Tensor]) -> Tensor:
    """The L2 norm of each float32 tensor, [k] float64, right for entries down to 1e-38.

    No host sync on CUDA. On the CPU, where looking costs nothing, float32 sums serve unless a norm
    is so small or large that its squares may have left the range; then float64 sums do.
    """
    device = tensors[0].device.type
    if device == "cuda":
        return _double_norms(tensors)
    if device == "mps":
        return _scaled_norms(tensors)
    flat = [one if one.dim() == 1 else one.reshape(-1) for one in tensors]
    squares = torch.stack(list(map(_sum_of_squares, flat)))
    result = squares.double().sqrt()
    low, high = SAFE_SQUARES
    doubtful = [index for index, one in enumerate(squares.tolist()) if not low < one < high]
    if doubtful:
        result[doubtful] = _double_norms([tensors[index] for index in doubtful])
    return result


def _sum_of_squares(flat: Tensor) -> Tensor:
    """In blocks: one running float32 sum of a million equal squares would be off by 5e-4."""
    if flat.numel() <= BLOCK:
        return torch.dot(flat, flat)
    blocks = flat.chunk(-(-flat.numel() // BLOCK))
    return torch.stack([torch.dot(block, block) for block in blocks]).sum()


def _double_norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float64))


def _scaled_norms(tensors: list[Tensor]) -> Tensor:
    """Norms in float32, each tensor first divided by its largest entry."""
    largest = torch._foreach_norm(tensors, float("inf"))
    safe = [torch.where(value > 0, value, 1.0) for value in largest]
    scaled = torch._foreach_norm(torch._foreach_div(tensors, safe), 2)
    return torch.stack(torch._foreach_mul(scaled, safe))


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
        for part in values.flatten().split(PART):
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
