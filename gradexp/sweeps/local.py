"""The local engine: worker processes that stay, one cell at a time each."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection, wait

from gradexp.errors import RunError
from gradexp.records import FAILED, RunDir
from gradexp.sweeps.directory import SweepDir
from gradexp.sweeps.events import (
    OUT_OF_MEMORY,
    Began,
    Ended,
    Events,
    Lost,
    Moved,
    StopRequest,
    Waiting,
)
from gradexp.sweeps.plan import Cell

POLL_SECONDS = 0.1
SECONDS_TO_STOP = 20.0
SECONDS_TO_EXIT = 5.0
LOSSES_PER_CELL = 2
FAILED_STARTS = 3


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_each(cpus: int, workers: int) -> int:
    """Threads of a worker: what a cell may occupy, but no more than its share of the cores.

    More than a small net can use do harm: they wait for one another by spinning, and beside other
    work on the machine a step then takes many times as long.
    """
    return min(cpus, max(1, usable_cores() // workers))


def worker_environment(threads: int) -> dict[str, str]:
    """The worker finds what this process finds, and numpy keeps to the same number of threads."""
    paths = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}


class Worker:
    """One worker process and the line to it."""

    def __init__(self, name: str, sweep: SweepDir, lock: int, threads: int) -> None:
        self.name = name
        self.cell: Cell | None = None
        self.ready = False
        # A socket, not a pipe: a worker that is gone shows as an end of file at once. The lifeline
        # works the other way round: only this process has its end, so that the kernel closes it
        # however this process dies.
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        descriptors = (theirs.fileno(), lifeline)
        with theirs, sweep.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  our own module, in this interpreter
                [sys.executable, "-m", "gradexp.sweeps.worker", *map(str, (*descriptors, threads))],
                pass_fds=(*descriptors, lock),  # the lock is held while any worker still writes
                env=worker_environment(threads),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the sweep, which passes it on
            )
        os.close(lifeline)
        self.connection = Connection(ours.detach())

    def give(self, cell: Cell, sweep: SweepDir, checkpoint_seconds: float) -> None:
        """Hand a cell over; a worker that is gone by then is noticed at the next look."""
        self.cell = cell
        content = cell.config.model_dump(mode="json")
        with contextlib.suppress(OSError):
            self.connection.send((content, str(sweep.runs), checkpoint_seconds))

    def interrupt(self) -> None:
        """Ask the worker to write a checkpoint and end."""
        self.process.send_signal(signal.SIGINT)

    def end(self, patience: float = 0.0) -> str:
        """Kill the process if it still lives after so many seconds; says how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self.process.kill()
        code = self.process.wait()
        self.connection.close()
        os.close(self._lifeline)
        if code == OUT_OF_MEMORY:
            return "the worker ran out of memory"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"the worker {how}"


@dataclass
class LocalEngine:
    """Carries out cells in `workers` processes on this machine, each with so many threads.

    Attributes:
        sweep: the directory to work in.
        lock: a descriptor that holds its lock.
        workers: how many processes.
        threads: of each; see `threads_each`.
        checkpoint_seconds: the longest time whose work a kill can cost.
    """

    sweep: SweepDir
    lock: int
    workers: int
    threads: int
    checkpoint_seconds: float
    _team: list[Worker] = field(default_factory=list)
    _losses: dict[str, int] = field(default_factory=dict)
    _failed_starts: int = 0

    def carry_out(self, cells: Sequence[Cell], stop: StopRequest) -> Events:
        """Tell what happens until every cell has ended, or until a stop was asked for."""
        queue = deque(cells)
        names = count(1)
        try:
            while (queue or self._busy()) and not stop.requested:
                missing = min(self.workers, len(queue) + len(self._busy())) - len(self._team)
                for _ in range(missing):
                    self._team.append(Worker(f"{next(names)}", self.sweep, self.lock, self.threads))
                yield from self._hand_out(queue)
                yield from self._listen(queue)
            if stop.requested:
                yield from self._stop_in_order()
        finally:
            for worker in self._team:
                worker.end()
            self._team.clear()

    def _busy(self) -> list[Worker]:
        return [worker for worker in self._team if worker.cell]

    def _hand_out(self, queue: deque[Cell]) -> Events:
        for worker in self._team:
            if queue and worker.ready and worker.cell is None:
                cell = queue.popleft()
                worker.give(cell, self.sweep, self.checkpoint_seconds)
                yield Began(cell, worker.name)

    def _listen(self, queue: deque[Cell]) -> Events:
        """What the workers said since the last look."""
        heard = wait([worker.connection for worker in self._team], POLL_SECONDS)
        for worker in [worker for worker in self._team if worker.connection in heard]:
            try:
                kind, content = worker.connection.recv()
            except (EOFError, OSError):
                yield from self._bury(worker, queue)
                continue
            if worker.cell is None:
                worker.ready, self._failed_starts = True, 0
            elif kind == "moved":
                yield Moved(worker.cell, worker.name, *content)
            elif kind == "ended":
                cell, worker.cell = worker.cell, None
                yield Ended(cell, worker.name, *content)
        if not heard:
            yield Waiting()

    def _bury(self, worker: Worker, queue: deque[Cell]) -> Events:
        """A worker is gone: its cell gets one more attempt, first in the queue."""
        self._team.remove(worker)
        # It hung up and may be about to say why with its exit code: killed too soon, running out of
        # memory would look like a kill by this process.
        reason = worker.end(SECONDS_TO_EXIT)
        cell = worker.cell
        if cell is None:
            self._failed_starts += not worker.ready
            if self._failed_starts >= FAILED_STARTS * self.workers:
                raise RunError(f"workers do not start ({reason}); see {self.sweep.log}")
            return
        # A cell may have killed its worker or have been beside one that did: it gets a second try,
        # not endless ones.
        self._losses[cell.run] = self._losses.get(cell.run, 0) + 1
        if self._losses[cell.run] < LOSSES_PER_CELL:
            queue.appendleft(cell)
            yield Lost(cell, worker.name, reason)
        else:
            error = f"RunError: {reason}, {LOSSES_PER_CELL} times in this run"
            record_failure(self.sweep.run(cell.run), cell, error)
            yield Ended(cell, worker.name, error)

    def _stop_in_order(self) -> Events:
        """Every worker at work writes a checkpoint and ends; a cell that is done by then counts."""
        busy = self._busy()
        for worker in busy:
            worker.interrupt()
        # Counted in rounds, so that news which keep coming do not put off the end.
        rounds = int(SECONDS_TO_STOP / POLL_SECONDS)
        for _ in range(rounds):
            if not busy:
                return
            heard = wait([worker.connection for worker in busy], POLL_SECONDS)
            for worker in [worker for worker in busy if worker.connection in heard]:
                kind, content = self._last_words(worker)
                if kind != "moved":
                    busy.remove(worker)
                if kind == "ended" and worker.cell:
                    yield Ended(worker.cell, worker.name, *content)
            if not heard:
                yield Waiting()

    @staticmethod
    def _last_words(worker: Worker) -> tuple[str, tuple[str | None, ...]]:
        try:
            kind, content = worker.connection.recv()
        except (EOFError, OSError):
            return "gone", ()
        return str(kind), content


def record_failure(run: RunDir, cell: Cell, error: str) -> None:
    """Write into the run's manifest that it failed, for a worker that could not do it itself."""
    run.path.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(RunError):
        known = run.read_manifest()
        run.write_manifest({**known, "status": FAILED, "error": error})
        return
    run.write_manifest({"status": FAILED, "name": cell.config.name, "id": cell.id, "error": error})
