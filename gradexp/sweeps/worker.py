"""A worker process: imports torch once, then carries out one cell after another.

Started by the local engine as `python -m gradexp.sweeps.worker SOCKET LIFELINE THREADS`, two
inherited descriptors and a number. It talks through the socket. The lifeline is a pipe that nobody
writes to: it ends when the sweep's process does, however that was killed, and the worker with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeAlias

from gradexp.sweeps.events import OUT_OF_MEMORY

News: TypeAlias = tuple[Literal["ready", "moved", "ended", "stopped"], tuple[Any, ...]]


def _die_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


def main(socket: int, lifeline: int, threads: int) -> None:
    """Carry out cells until the sweep hangs up.

    The lifeline is watched before torch is loaded: a worker that outlived its sweep by those
    seconds would hold the directory against the same command again.
    """
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the sweep's own process does on it
    connection = Connection(socket)
    import torch

    from gradexp.sweeps.work import Reporter, carry_out

    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        connection.send(("ready", ()))
        while True:
            task = connection.recv()
            _answer(connection, partial(carry_out, task, Reporter(connection)))


def _answer(connection: Connection, work: Callable[[], str | None]) -> None:
    """Carry out one cell; on Ctrl-C its checkpoint is written before this process ends."""
    try:
        error = work()
    except KeyboardInterrupt:
        connection.send(("stopped", ()))
        raise
    except MemoryError:
        # What is left of the heap is in nobody's hands: a new process takes the next cell.
        traceback.print_exc()
        sys.exit(OUT_OF_MEMORY)
    connection.send(("ended", (error,)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
