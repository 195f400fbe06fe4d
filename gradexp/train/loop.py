"""The training loop: steps in chunks, probes between them."""

from __future__ import annotations

import time
from bisect import bisect_right
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gradexp.config import Config
from gradexp.data import probe_examples
from gradexp.probes.looking import ProbeSet, most_at_once, probe
from gradexp.probes.nonfinite import (
    NonFinite,
    first_bad_step,
    locate_by_forward,
    locate_by_norms,
    locate_by_probe,
)
from gradexp.probes.steps import PER_LAYER, StepValues
from gradexp.probes.units import UnitLedger
from gradexp.records import RunDir
from gradexp.train.checkpoint import Checkpoints, State
from gradexp.train.learner import Learner
from gradexp.train.observer import EpochEnd, Observer, Progress, Start
from gradexp.train.plan import probe_steps, total_steps
from gradexp.train.recording import Recording

CHUNK_STEPS = 256
CHUNK_SECONDS = 0.5  # a chunk of slow steps ends sooner, so that tables and screen keep up


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy on the test set after `step` updates, at the end of an epoch."""

    epoch: int
    step: int
    figures: tuple[float, float]
    seconds: float


class Loop:
    """One run from its first step, or from a checkpoint, to its end."""

    def __init__(
        self, config: Config, run: RunDir, learner: Learner, state: State, observer: Observer
    ) -> None:
        self.config = config
        self.learner = learner
        self.observer = observer
        self.step: int = state.get("step", 0)
        self.nonfinite = NonFinite(**state["nonfinite"]) if state.get("nonfinite") else None
        self.diverged: NonFinite | None = None
        self.last: dict[str, float] = state.get("last", {})
        self.layers = learner.network.layers()
        self.names = [layer.spec.name for layer in self.layers]
        self.ledger = UnitLedger()
        self.ledger.load(state.get("ledger", {}))
        self.resumed = "learner" in state
        if self.resumed:
            learner.load(state["learner"])
        self.recording = Recording(
            run, self.layers, config.probe.gradients_every, state.get("recording", {})
        )
        self._plan(config)

    def _plan(self, config: Config) -> None:
        batches, data = self.learner.batches, self.learner.data
        count = None if config.probe.examples == "all" else config.probe.examples
        inputs, targets = probe_examples(data, count)
        norm = config.model.norm.make()
        together = most_at_once(
            self.learner.network, batches.batch_size, alone=not (norm and norm.across_examples)
        )
        self.probe_set = ProbeSet(inputs, targets, together, data.low, data.high)
        self.per_epoch = batches.per_epoch
        self.total = total_steps(config, self.per_epoch)
        self.probe_steps = probe_steps(
            config, self.total, self.per_epoch, batches.batch_size, len(targets)
        )

    def run(self, checkpoints: Checkpoints) -> None:
        """Train to the end, or to the first loss that is not finite."""
        self.observer.started(
            Start(self.config.name, self.names, self.total, self.per_epoch, self.step)
        )
        with self.recording:
            if not self.resumed:
                self._begin()
            while self.step < self.total and not self.diverged:
                self._save_and_go_on(checkpoints)
            self.recording.finish()

    def _begin(self) -> None:
        self._probe()
        if self.total == 0:
            self._observe_initialization()

    def _save_and_go_on(self, checkpoints: Checkpoints) -> None:
        """A chunk of steps; before it a checkpoint, where one is due."""
        checkpoints.latest = state = self.state()
        if checkpoints.due():
            self.recording.sync()
            checkpoints.save()
        self._chunk(state["learner"])

    def state(self) -> State:
        """Everything that decides how the run goes on."""
        return {
            "step": self.step,
            "nonfinite": asdict(self.nonfinite) if self.nonfinite else None,
            "last": dict(self.last),
            "ledger": self.ledger.state(),
            "learner": self.learner.state(),
            "recording": self.recording.state(),
        }

    def _observe_initialization(self) -> None:
        """`train.steps: 0`: one row for step 0, no update, and the test set as it is met."""
        began = time.perf_counter()
        self.learner.observe_only()
        values = self.learner.step_probe.take()
        seconds = time.perf_counter() - began
        self._look_for_nonfinite(0, values)
        if not np.isfinite(values.loss).all():
            self._end_here()
        self.recording.steps(0, values, self.learner.batches.epoch_of, self._lr, seconds)
        self._note_test(self.learner.evaluate())

    def _chunk(self, before: State) -> None:
        """Steps up to the next probe or flush, then everything they have to tell."""
        start, began = self.step, time.perf_counter()
        tests = self._train()
        values = self.learner.step_probe.take()
        seconds = time.perf_counter() - began - sum(test.seconds for test in tests)
        self._look_for_nonfinite(start, values)
        if not np.isfinite(values.loss).all():
            values = self._go_back_to_divergence(before, start, values)
            tests = [test for test in tests if test.step <= self.step]
            tests.append(self._test(self.learner.batches.epoch_of(self.step)))
        self.recording.steps(start, values, self.learner.batches.epoch_of, self._lr, seconds)
        for test in tests:
            self._close_epoch(test)
        self._report(values)
        # A chunk begins where the last probe was: a loss that ends it there was looked at already.
        if (self.step in self.probe_steps) != bool(self.diverged):
            self._probe()

    def _train(self) -> list[Evaluation]:
        """The steps of a chunk; where an epoch ends, or the run, the test set is met."""
        began, tests = time.perf_counter(), []
        stop = self._next_stop()
        while self.step < stop and time.perf_counter() - began < CHUNK_SECONDS:
            self.learner.step(self.step, self.total)
            self.step += 1
            if self.step % self.per_epoch == 0 or self.step == self.total:
                tests.append(self._test(self.learner.batches.epoch_of(self.step - 1)))
        return tests

    def _next_stop(self) -> int:
        """A chunk stays between two probes."""
        next_probe = self.probe_steps[bisect_right(self.probe_steps, self.step)]
        return min(self.step + CHUNK_STEPS, next_probe, self.total)

    def _test(self, epoch: int) -> Evaluation:
        """Evaluate the net as it is at the end of an epoch."""
        self.learner.wait()
        began = time.perf_counter()
        figures = self.learner.evaluate()
        return Evaluation(epoch, self.step, figures, time.perf_counter() - began)

    def _look_for_nonfinite(self, start: int, values: StepValues) -> None:
        """Find a gradient or weight that stopped being finite while the loss still was."""
        bad = first_bad_step(values)
        if self.nonfinite is None and bad is not None and np.isfinite(values.loss[bad]):
            self._note_nonfinite(locate_by_norms(values, bad, start + bad, self.names))

    def _note_nonfinite(self, event: NonFinite) -> None:
        self.nonfinite = event
        self.recording.event = event.step

    def _go_back_to_divergence(self, before: State, start: int, values: StepValues) -> StepValues:
        """Repeat the chunk up to the first bad loss: the run ends there, without that update."""
        count = int(np.argmin(np.isfinite(values.loss)))
        self.learner.load(before)
        for step in range(start, start + count):
            self.learner.step(step, self.total)
        self.step = start + count
        self._end_here()
        return values.ended_before_update(count)

    def _end_here(self) -> None:
        """The loss of the step at hand is not finite: find out where that begins."""
        inputs, _ = self.learner.batches.batch(self.step)
        self.diverged = locate_by_forward(self.learner.network, inputs, self.step, self.names)
        if self.nonfinite is None:
            self._note_nonfinite(self.diverged)

    def _close_epoch(self, test: Evaluation) -> None:
        means = self.recording.epoch(test.epoch, test.step, test.figures)
        loss, accuracy = means
        self.last |= {"epochs": test.epoch, "train_loss": loss, "train_accuracy": accuracy}
        self._note_test(test.figures)
        self.observer.epoch_ended(
            EpochEnd(test.epoch, test.step, *means, *test.figures, test.seconds)
        )

    def _note_test(self, test: tuple[float, float]) -> None:
        self.last |= {"test_loss": test[0], "test_accuracy": test[1]}

    def _probe(self) -> None:
        began = time.perf_counter()
        rows = probe(self.learner.network, self.probe_set, self.ledger, self.step)
        self.recording.probe(rows)
        found = locate_by_probe(self.learner.network, rows.signal, self.step, self.names)
        if self.nonfinite is None and found is not None:
            self._note_nonfinite(found)
        epoch = self.learner.batches.epoch_of(self.step)
        self.recording.add_seconds(epoch, time.perf_counter() - began)

    def _lr(self, step: int) -> float:
        return self.learner.lr(step, self.total)

    def _report(self, values: StepValues) -> None:
        loss, accuracy = values.scalars[-1, :2]
        norms = values.layers[-1, PER_LAYER.index("grad_norm")]
        self.observer.progressed(Progress(self.step, float(loss), float(accuracy), norms))

    def figures(self) -> dict[str, Any]:
        """The final figures that the loop knows itself."""
        return {"steps": self.step, **self.last}
