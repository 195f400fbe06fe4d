"""From measured values to the run directory's tables, in chunks, appended."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from gradexp.nn.observed import Observed
from gradexp.probes.looking import ProbeRows
from gradexp.probes.steps import LayerNorms, StepValues, gradient_lines
from gradexp.records import Column, RunDir, TableWriter
from gradexp.records.tables import Value

FLIGHT_RECORDER_STEPS = 50
APPENDED = ("gradients", "signal", "units", "unit_events", "steps", "epochs")


@dataclass(frozen=True)
class StepTimes:
    """What a step's row needs beside what was measured.

    Attributes:
        first: number of the first of consecutive steps.
        epoch_of: the epoch, from 1, of a step.
        lr: the learning rate of a step; None where it is not known.
        seconds: of all the steps together.
    """

    first: int
    epoch_of: Callable[[int], int]
    lr: Callable[[int], float | None]
    seconds: float


class Recording:
    """The open tables of a run, and what is not written yet.

    With `every` above 1 only each `every`-th step goes to `gradients.csv`; the newest 50 steps
    wait, so that all of them can be written when something becomes non-finite at the step `event`.
    `added` are columns that the run's own probes add to tables.
    """

    def __init__(
        self,
        run: RunDir,
        layers: Sequence[Observed],
        every: int,
        state: dict[str, Any],
        added: Mapping[str, Sequence[Column]] | None = None,
    ) -> None:
        offsets = state.get("offsets", {})
        self._writers: dict[str, TableWriter] = {}
        with contextlib.ExitStack() as unless_all_open:
            unless_all_open.callback(self.close)
            for name in APPENDED:
                own = (added or {}).get(name, ())
                self._writers[name] = run.writer(name, offsets.get(name, 0), own)
            unless_all_open.pop_all()
        self._layers = layers
        self._every = every
        self.event: int | None = state.get("event")
        self._waiting = [
            LayerNorms(step, np.array(values), updated)
            for step, values, updated in state.get("waiting", [])
        ]
        self._epoch_sums: dict[int, list[float]] = state.get("epoch_sums", {})

    def state(self) -> dict[str, Any]:
        """For a checkpoint: how long each table is, what it holds, what is still to be written."""
        return {
            "offsets": {name: writer.offset for name, writer in self._writers.items()},
            "digests": {name: writer.digest for name, writer in self._writers.items()},
            "event": self.event,
            "waiting": [(one.step, one.values.tolist(), one.updated) for one in self._waiting],
            "epoch_sums": {epoch: list(sums) for epoch, sums in self._epoch_sums.items()},
        }

    def steps(self, values: StepValues, times: StepTimes) -> None:
        """Write consecutive steps."""
        each = times.seconds / len(values)
        rows = []
        for step, figures in enumerate(values.rows(), start=times.first):
            epoch = times.epoch_of(step)
            row: dict[str, Value] = {
                "step": step,
                "epoch": epoch,
                "lr": times.lr(step),
                "step_seconds": each,
            }
            rows.append({**row, **figures})
            loss = figures.get("loss", math.nan)
            self._add_to_epoch(epoch, loss, figures.get("accuracy", 0.0), 1, each)
        self._writers["steps"].append(rows)
        self._waiting += [
            LayerNorms(times.first + index, row, index < values.updates)
            for index, row in enumerate(values.layers)
        ]
        keep = FLIGHT_RECORDER_STEPS if self._every > 1 else 0
        ready = max(0, len(self._waiting) - keep)
        self._write_gradients(self._waiting[:ready])
        self._waiting = self._waiting[ready:]

    def _write_gradients(self, steps: list[LayerNorms]) -> None:
        due = [one for one in steps if one.step % self._every == 0 or self._leads_up(one.step)]
        self._writers["gradients"].append_text(gradient_lines(due, self._layers))

    def _leads_up(self, step: int) -> bool:
        """Whether the flight recorder keeps this step, whatever the cadence."""
        return self.event is not None and 0 <= self.event - step <= FLIGHT_RECORDER_STEPS

    def _add_to_epoch(self, epoch: int, *amounts: float) -> None:
        """Loss, accuracy, steps and seconds."""
        sums = self._epoch_sums.get(epoch, [0.0] * 4)
        self._epoch_sums[epoch] = [one + more for one, more in zip(sums, amounts, strict=True)]

    def epoch(self, epoch: int, step: int, test: tuple[float, float]) -> tuple[float, float]:
        """Close an epoch; returns its mean training loss and accuracy."""
        loss, accuracy, count, seconds = self._epoch_sums.pop(epoch)
        means = loss / count, accuracy / count
        row = {"epoch": epoch, "step": step, "seconds": seconds}
        row |= dict(zip(("train_loss", "train_accuracy"), means, strict=True))
        row |= dict(zip(("test_loss", "test_accuracy"), test, strict=True))
        self._writers["epochs"].append([row])
        return means

    def add_seconds(self, epoch: int, seconds: float) -> None:
        """Count time spent on probes to an epoch."""
        self._add_to_epoch(epoch, 0.0, 0.0, 0, seconds)

    def probe(self, rows: ProbeRows) -> None:
        """Write one probe."""
        for name in ("signal", "units", "unit_events"):
            self._writers[name].append(getattr(rows, name))

    def sync(self) -> None:
        """Wait until all tables have reached the disk."""
        for writer in self._writers.values():
            writer.sync()

    def finish(self) -> None:
        """Write what still waits."""
        self._write_gradients(self._waiting)
        self._waiting = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all tables."""
        for writer in self._writers.values():
            writer.close()


def write_layers(run: RunDir, layers: Sequence[Observed]) -> None:
    """`layers.csv`: what the net consists of."""
    with contextlib.closing(run.writer("layers")) as writer:
        writer.append([layer.row(index) for index, layer in enumerate(layers, start=1)])
