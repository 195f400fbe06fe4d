"""A worker process: imports torch once, then carries out one cell after another.

Started by the local engine as `python -m gradexp.sweep.worker SOCKET LIFELINE THREADS`, two
inherited descriptors and a number. It talks through the socket. The lifeline is a pipe that nobody
writes to: it ends when the sweep's process does, however that was killed, and the worker with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeAlias

from gradexp.config import Source, resolve
from gradexp.errors import GradexpError
from gradexp.sweep.events import OUT_OF_MEMORY
from gradexp.train import Observer, Progress, Start, execute

SECONDS_BETWEEN_NEWS = 0.2

Task: TypeAlias = tuple[dict[str, Any], str, float]  # settings, folder of the runs, checkpoint
News: TypeAlias = tuple[Literal["ready", "moved", "ended", "stopped"], tuple[Any, ...]]


class Reporter(Observer):
    """Tells the sweep where the run is, a few times a second."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._told_at = 0.0

    def started(self, start: Start) -> None:
        """Remember how long the run is."""
        self._total = start.total_steps

    def progressed(self, progress: Progress) -> None:
        """Tell the step and the loss."""
        if time.monotonic() - self._told_at >= SECONDS_BETWEEN_NEWS:
            self._told_at = time.monotonic()
            self._connection.send(("moved", (progress.step, self._total, progress.loss)))


def carry_out(task: Task, observer: Observer) -> str | None:
    """One cell, start to end; returns what went wrong.

    Raises:
        MemoryError: there was not enough memory; in a fresh process there may be.
    """
    content, runs, checkpoint_seconds = task
    try:
        config = resolve(Source(content))
        execute(config, Path(runs), observer=observer, checkpoint_seconds=checkpoint_seconds)
    except GradexpError as error:
        return str(error)
    except Exception as error:
        if _out_of_memory(error):
            raise MemoryError(str(error)) from error
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def _out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def _die_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


def main(socket: int, lifeline: int, threads: int) -> None:
    """Carry out cells until the sweep hangs up."""
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import torch

    torch.set_num_threads(threads)
    connection = Connection(socket)
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        connection.send(("ready", ()))
        while True:
            _answer(connection, connection.recv())


def _answer(connection: Connection, task: Task) -> None:
    """Carry out one cell; on Ctrl-C its checkpoint is written before this process ends."""
    try:
        error = carry_out(task, Reporter(connection))
    except KeyboardInterrupt:
        connection.send(("stopped", ()))
        raise
    except MemoryError:
        traceback.print_exc()
        sys.exit(OUT_OF_MEMORY)
    connection.send(("ended", (error,)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
