"""What cells cost, by carrying out their first steps in a process of its own.

Started by `gradexp.sweeps.estimate` as `python -m gradexp.sweeps.trial FOLDER THREADS`: reads the
settings of cells from `cells.json` in that folder, and writes what each costs to `costs.json`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gradexp.config import Config, Source, resolve
from gradexp.errors import GradexpError
from gradexp.sweeps.estimate import CELLS, COSTS, Cost
from gradexp.train import EpochEnd, Observer, Progress, Start, execute
from gradexp.train.plan import probe_steps

SECONDS_IN_ALL = 1.5
NO_PROBE_BETWEEN = 10**9  # steps
# What makes files, as the interpreter announces it, and which of its arguments says where.
WRITTEN = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1}


class _Enough(BaseException):
    """Enough steps were seen; no error, and nobody else's to catch, as KeyboardInterrupt."""


class Stopwatch(Observer):
    """Reads the clock, and ends the run after so many seconds of training."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.began = time.perf_counter()
        self.chunks: list[tuple[int, float]] = []
        self.evaluations: list[float] = []
        self._tested = 0.0

    def started(self, start: Start) -> None:
        """Data and net are there."""
        self.total, self.per_epoch, self._step = start.total_steps, start.per_epoch, 0
        self.ready = self._at = time.perf_counter()

    def progressed(self, progress: Progress) -> None:
        """A chunk of steps, the first one with a probe before it."""
        before, self._at = self._at, time.perf_counter()
        self.chunks.append((progress.step - self._step, self._at - before - self._tested))
        self._step, self._tested = progress.step, 0.0
        if len(self.chunks) > 1 and self._at - self.ready > self._seconds:
            raise _Enough

    def epoch_ended(self, end: EpochEnd) -> None:
        """An evaluation within the chunk."""
        self.evaluations.append(end.test_seconds)
        self._tested += end.test_seconds

    def cost(self, probes: int) -> Cost:
        """What the whole run will cost when it has so many probes, the first and last included."""
        loading, everything = self.ready - self.began, time.perf_counter() - self.began
        if not self.chunks:
            return Cost(everything, 0.0, self.per_epoch, everything)
        (first_steps, first_seconds), *later = self.chunks
        steps, training = map(sum, zip(*(later or self.chunks), strict=True))
        step = training / steps
        probe = max(0.0, first_seconds - first_steps * step)
        between = probe * (probes - 2) / self.total
        evaluation = sum(self.evaluations) / max(1, len(self.evaluations)) / self.per_epoch
        start = loading + 2 * probe
        return Cost(start, step + between + evaluation, self.per_epoch, everything)


def attempt(config: Config, folder: Path, seconds: float) -> Cost:
    """Carry out the first steps of a run below `folder`, without probes between them."""
    probe = config.probe.model_copy(update={"every": NO_PROBE_BETWEEN})
    watch = Stopwatch(seconds)
    with contextlib.suppress(_Enough):
        execute(config.model_copy(update={"probe": probe}), folder, fresh=True, observer=watch)
    batch = config.data.batch_size
    available = watch.per_epoch * batch
    examples = config.probe.examples
    looked_at = available if examples == "all" else min(examples, available)
    return watch.cost(len(probe_steps(config, watch.total, watch.per_epoch, batch, looked_at)))


def attempts(contents: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The cost of every cell; or which one failed, and how."""
    each = SECONDS_IN_ALL / len(contents)
    costs: list[dict[str, Any]] = []
    for index, content in enumerate([contents[0], *contents]):
        try:
            cost = attempt(resolve(Source(content)), folder, each if index else 0.0)
        except GradexpError as error:
            return {"failed": max(0, index - 1), "error": str(error)}
        except Exception as error:  # noqa: BLE001  whatever a part raises is why
            return {"failed": max(0, index - 1), "error": f"{type(error).__name__}: {error}"}
        costs.append(asdict(cost))
    return {"costs": costs[1:]}  # the first attempt of all pays for what a process does once


def write_only_below(folder: Path) -> None:
    """Refuse this process to write elsewhere: a dry run fetches no data and leaves no file."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        place = WRITTEN.get(event)
        if place is None or isinstance(arguments[place], int):
            return
        path = Path(os.fsdecode(arguments[place])).resolve()
        if not path.is_relative_to(folder) and not path.is_relative_to("/dev"):
            raise PermissionError(errno.EPERM, "a dry run writes nothing", str(path))

    sys.addaudithook(refuse)


def main(folder: Path, threads: int) -> None:
    """Read the cells, try them, write the costs."""
    write_only_below(folder.resolve())
    torch.set_num_threads(threads)
    contents = json.loads((folder / CELLS).read_text())
    (folder / COSTS).write_text(json.dumps(attempts(contents, folder)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
