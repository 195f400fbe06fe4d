"""The training loop: chunks of steps, probes between them."""

from __future__ import annotations

import time
from typing import Any

from gradexp.config import Config
from gradexp.probes import added_columns, most_at_once
from gradexp.probes.steps import PER_LAYER
from gradexp.recorder import Recording, StepTimes
from gradexp.records import RunDir
from gradexp.train.checkpoint import Checkpoints, State
from gradexp.train.chunks import Chunk, Evaluation, evaluate, observe_start, train_chunk
from gradexp.train.ends import Ends
from gradexp.train.learner import Learner
from gradexp.train.observer import EpochEnd, Observer, Progress, Start
from gradexp.train.plan import timetable


class Loop:
    """One run from its first step, or from a checkpoint, to its end."""

    def __init__(
        self, config: Config, run: RunDir, learner: Learner, state: State, observer: Observer
    ) -> None:
        self.config, self.learner, self.observer = config, learner, observer
        self.step: int = state.get("step", 0)
        self.last: dict[str, float] = state.get("last", {})
        self.ends = Ends(learner, state.get("nonfinite"))
        self.prober = _prober(config, learner)
        self.times = timetable(
            config, learner.batches.per_epoch, learner.batches.batch_size, len(self.prober.examples)
        )
        self.recording = Recording(
            run,
            learner.layers,
            config.probe.gradients_every,
            state.get("recording", {}),
            added_columns(),
        )
        self.resumed = "learner" in state
        if self.resumed:
            learner.load(state["learner"])
            self.prober.load(state["probes"])

    def run(self, checkpoints: Checkpoints) -> None:
        """Train to the end, or to the first loss that is not finite."""
        names = [layer.name for layer in self.learner.layers]
        self.observer.started(
            Start(self.config.name, names, self.times.total, self.times.per_epoch, self.step)
        )
        with self.recording:
            if not self.resumed:
                self._begin()
            while self.step < self.times.total and not self.ends.diverged:
                # At the start of a chunk all is of one step; within it, some is ahead of the rest.
                checkpoints.latest = self.state()
                if checkpoints.due():
                    # Rows before the state that follows them: it must never be ahead of the tables.
                    self.recording.sync()
                    checkpoints.save()
                self._advance(checkpoints.latest["learner"])
            self.recording.finish()

    def _begin(self) -> None:
        """The net as it was drawn; with `train.steps: 0` that is all."""
        self._probe()
        if self.times.total == 0:
            chunk = observe_start(self.learner)
            self.ends.examine_start(chunk)
            self._write(chunk)
            self._note_test(evaluate(self.learner, 0, 0))

    def _advance(self, before: State) -> None:
        """A chunk of steps, everything they have to tell, and a probe where one is due."""
        chunk = train_chunk(self.learner, self.times, self.step)
        chunk = self.ends.examine(chunk, before, self.times.total)
        self.step = chunk.stop
        self._write(chunk)
        for test in chunk.tests:
            self._close_epoch(test)
        self._report(chunk)
        # A chunk begins where the last probe was: a loss that ends it there was looked at already.
        if (self.step in self.times.probes) != bool(self.ends.diverged):
            self._probe()

    def _write(self, chunk: Chunk) -> None:
        self.recording.event = self.ends.first.step if self.ends.first else None
        epoch_of = self.learner.batches.epoch_of
        self.recording.steps(
            chunk.values, StepTimes(chunk.start, epoch_of, self._lr, chunk.seconds)
        )

    def _lr(self, step: int) -> float:
        return self.learner.lr(step, self.times.total)

    def _close_epoch(self, test: Evaluation) -> None:
        means = self.recording.epoch(test.epoch, test.step, test.figures)
        loss, accuracy = means
        self.last |= {"epochs": test.epoch, "train_loss": loss, "train_accuracy": accuracy}
        self._note_test(test)
        self.observer.epoch_ended(
            EpochEnd(test.epoch, test.step, *means, *test.figures, test.seconds)
        )

    def _note_test(self, test: Evaluation) -> None:
        loss, accuracy = test.figures
        self.last |= {"test_loss": loss, "test_accuracy": accuracy}

    def _report(self, chunk: Chunk) -> None:
        figures = chunk.values.rows()[-1]
        norms = chunk.values.layers[-1, PER_LAYER.index("grad_norm")]
        self.observer.progressed(Progress(self.step, figures["loss"], figures["accuracy"], norms))

    def _probe(self) -> None:
        began = time.perf_counter()
        rows = self.prober.look(self.step)
        self.recording.probe(rows)
        self.ends.examine_probe(rows.signal, self.step)
        self.recording.event = self.ends.first.step if self.ends.first else None
        epoch = self.learner.batches.epoch_of(self.step)
        self.recording.add_seconds(epoch, time.perf_counter() - began)

    def state(self) -> State:
        """Everything that decides how the run goes on."""
        return {
            "step": self.step,
            "nonfinite": self.ends.state(),
            "last": dict(self.last),
            "probes": self.prober.state(),
            "learner": self.learner.state(),
            "recording": self.recording.state(),
        }

    def figures(self) -> dict[str, Any]:
        """The final figures that the loop knows itself."""
        return {"steps": self.step, **self.last}


def _prober(config: Config, learner: Learner) -> Any:
    examples = None if config.probe.examples == "all" else config.probe.examples
    norm = config.model.norm.make() if config.model.norm else None
    alone = not (config.model.whole or (norm and norm.across_examples))
    together = most_at_once(learner.layers, learner.batches.batch_size, alone=alone)
    return learner.prober(examples, together)
