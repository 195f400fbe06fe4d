"""One cell in this process, start to end: what every engine does in the end."""

from __future__ import annotations

import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

from gradexp.config import Source, resolve
from gradexp.errors import GradexpError
from gradexp.train import Observer, Progress, Start, execute

SECONDS_BETWEEN_NEWS = 0.2

Task: TypeAlias = tuple[dict[str, Any], str, float]  # settings, folder of the runs, checkpoint


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
