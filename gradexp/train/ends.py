"""Where finite values end: noticed while training goes on, or the end of the run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from gradexp.probes.looking import Row
from gradexp.probes.nonfinite import (
    NonFinite,
    first_bad_step,
    locate_by_forward,
    locate_by_norms,
    locate_by_probe,
)
from gradexp.train.checkpoint import State
from gradexp.train.chunks import Chunk, evaluate
from gradexp.train.learner import Learner


class Ends:
    """Keeps what was not finite first, and what ended the run.

    Attributes:
        first: the first value that was not finite, anywhere.
        diverged: the first one of the step whose loss ended the run.
    """

    def __init__(self, learner: Learner, state: dict[str, Any] | None) -> None:
        self._learner = learner
        self._names = [layer.name for layer in learner.layers]
        self.first = NonFinite(**state) if state else None
        self.diverged: NonFinite | None = None

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint."""
        return asdict(self.first) if self.first else None

    def examine(self, chunk: Chunk, before: State, total: int) -> Chunk:
        """The chunk; cut short where its loss stops being finite, and the net taken back there.

        Args:
            chunk: steps that were just made.
            before: the learner's state before them.
            total: steps of the whole run, on which learning rates depend.
        """
        self._look_at_norms(chunk)
        if chunk.bad is None:
            return chunk
        cut = chunk.ended_at(chunk.bad)
        self._learner.load(before)
        for step in range(cut.start, cut.stop):
            self._learner.step(step, total)
        self._end(cut.stop)
        epoch = self._learner.batches.epoch_of(cut.stop)
        cut.tests.append(evaluate(self._learner, cut.stop, epoch))
        return cut

    def examine_start(self, chunk: Chunk) -> None:
        """As `examine`, where no update was made."""
        self._look_at_norms(chunk)
        if chunk.bad is not None:
            self._end(0)

    def examine_probe(self, signal: list[Row], step: int) -> None:
        """A probe may see what the norms of a step do not."""
        self._note(locate_by_probe(self._learner.layers, signal, step))

    def _look_at_norms(self, chunk: Chunk) -> None:
        """A gradient or weight that stopped being finite while the loss still was."""
        bad = first_bad_step(chunk.values)
        if bad is not None and np.isfinite(chunk.values.loss[bad]):
            self._note(locate_by_norms(chunk.values, bad, chunk.start + bad, self._names))

    def _end(self, step: int) -> None:
        """The loss of the step at hand is not finite: find out where that begins."""
        learner = self._learner
        inputs, _ = learner.batches.batch(step)
        self.diverged = locate_by_forward(learner.network, learner.layers, inputs, step)
        self._note(self.diverged)

    def _note(self, found: NonFinite | None) -> None:
        self.first = self.first or found
