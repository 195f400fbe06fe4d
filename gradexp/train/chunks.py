"""Steps without a word: a chunk of them, measured on the device, fetched at its end."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from gradexp.probes.steps import StepValues
from gradexp.recorder import CHUNK_SECONDS, CHUNK_STEPS
from gradexp.train.learner import Learner
from gradexp.train.plan import Timetable


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy on the test set after `step` updates, at the end of an epoch."""

    epoch: int
    step: int
    figures: tuple[float, float]
    seconds: float


@dataclass(frozen=True)
class Chunk:
    """Consecutive steps and what they had to tell.

    Attributes:
        start: updates before the first of them.
        stop: updates after the last of them.
        values: what was measured.
        tests: evaluations on the way.
        seconds: wall-clock time, evaluations not counted.
    """

    start: int
    stop: int
    values: StepValues
    tests: list[Evaluation]
    seconds: float

    @property
    def bad(self) -> int | None:
        """Position of the first step whose loss is not finite."""
        finite = np.isfinite(self.values.loss)
        return None if finite.all() else int(np.argmin(finite))

    def ended_at(self, position: int) -> Chunk:
        """The chunk up to that step, whose own update has been taken back."""
        stop = self.start + position
        tests = [test for test in self.tests if test.step <= stop]
        values = self.values.ended_before_update(position)
        return replace(self, stop=stop, values=values, tests=tests)


def train_chunk(learner: Learner, timetable: Timetable, start: int) -> Chunk:
    """Steps up to the next probe, so many that tables and screen keep up."""
    began = time.perf_counter()
    step, tests = start, list[Evaluation]()
    stop = min(start + CHUNK_STEPS, timetable.next_probe(start), timetable.total)
    # A clock may end it: where a chunk ends decides when rows are written, not what is in them.
    while step < stop and time.perf_counter() - began < CHUNK_SECONDS:
        learner.step(step, timetable.total)
        step += 1
        if timetable.ends_epoch(step):
            tests.append(evaluate(learner, step, learner.batches.epoch_of(step - 1)))
    values = learner.step_probe.take()
    seconds = time.perf_counter() - began - sum(test.seconds for test in tests)
    return Chunk(start, step, values, tests, seconds)


def observe_start(learner: Learner) -> Chunk:
    """`train.steps: 0`: step 0 is measured, and no update made."""
    began = time.perf_counter()
    learner.observe_only()
    values = learner.step_probe.take()
    return Chunk(0, 0, values, [], time.perf_counter() - began)


def evaluate(learner: Learner, step: int, epoch: int) -> Evaluation:
    """The test set as the net is now."""
    # Steps are only queued on a GPU: without waiting, their time would count as the evaluation's.
    learner.wait()
    began = time.perf_counter()
    figures = learner.evaluate()
    return Evaluation(epoch, step, figures, time.perf_counter() - began)
