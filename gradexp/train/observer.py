"""What a run tells while it works: implemented by the screen, by sweeps, by tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Start:
    """What is about to be done."""

    name: str
    layers: list[str]
    total_steps: int
    per_epoch: int
    first_step: int


@dataclass(frozen=True)
class Progress:
    """Where the run is; figures of the newest finished step.

    `grad_norms` holds the weight-gradient norm of each layer, [layers].
    """

    step: int
    loss: float
    accuracy: float
    grad_norms: np.ndarray


@dataclass(frozen=True)
class EpochEnd:
    """An epoch after `step` updates: means over its batches, and the test set in that state.

    `test_seconds` is how long the test set took.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    test_seconds: float


class Observer:
    """Hears of a run's progress; this one does nothing with it."""

    def started(self, start: Start) -> None:
        """Before the first step."""

    def epoch_ended(self, end: EpochEnd) -> None:
        """For each epoch that ended within a chunk of steps, after the chunk."""

    def progressed(self, progress: Progress) -> None:
        """After each chunk of steps."""

    def closed(self) -> None:
        """The run has ended, one way or another."""
