"""Seeded training batches: a function of the step, not a stream with a state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradexp.data.augmentation import Augmentation
from gradexp.data.prepared import Data
from gradexp.data.streams import stream

if TYPE_CHECKING:
    import torch


class Batches:
    """The training batches of a run, each a function of (seed, step) alone.

    Every epoch is a fresh permutation; the partial batch at its end is left out. A set smaller
    than a batch is one batch. Order and draws of the current epoch stay on the device, so that a
    step costs one selection (and its augmentation) and never waits for the device.
    """

    def __init__(self, data: Data, batch_size: int, augmentation: Augmentation, seed: int) -> None:
        self.data = data
        self.batch_size = min(batch_size, len(data.train_targets))
        self.per_epoch = len(data.train_targets) // self.batch_size
        self.augmentation = augmentation
        self.seed = seed
        self._low = data.low.float().to(data.train_targets.device).view(-1, 1, 1)
        self._start_epoch(1)

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, of the 0-based step."""
        return step // self.per_epoch + 1

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs float32 [b, C, H, W] and targets int64 [b] of the 0-based step."""
        epoch = self.epoch_of(step)
        if epoch != self._epoch:
            self._start_epoch(epoch)
        start = step % self.per_epoch * self.batch_size
        chosen = self._order[start : start + self.batch_size]
        draws = self._draws[:, start : start + self.batch_size]
        inputs = self.data.inputs(self.data.train_images.index_select(0, chosen))
        targets = self.data.train_targets.index_select(0, chosen)
        return self.augmentation.apply(inputs, draws, self._low), targets

    def _start_epoch(self, epoch: int) -> None:
        import torch

        count, device = len(self.data.train_targets), self.data.train_targets.device
        order = torch.randperm(count, generator=stream(self.seed, "order", epoch))
        generator = stream(self.seed, "augment", epoch)
        draws = torch.empty(len(self.augmentation.ranges), count, dtype=torch.int64)
        for row, limit in zip(draws, self.augmentation.ranges, strict=True):
            row.random_(0, limit, generator=generator)
        self._order, self._draws, self._epoch = order.to(device), draws.to(device), epoch
