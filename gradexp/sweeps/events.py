"""What engines tell while they carry out cells, and how they are asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Protocol, Self, TypeAlias

from gradexp.sweeps.plan import Cell

OUT_OF_MEMORY = 75  # exit code of a worker that could not get enough


@dataclass(frozen=True)
class Began:
    """A cell was handed to a worker."""

    cell: Cell
    worker: str


@dataclass(frozen=True)
class Moved:
    """Where a cell is."""

    cell: Cell
    worker: str
    step: int
    total: int
    loss: float


@dataclass(frozen=True)
class Ended:
    """A cell's run directory is as it will stay; `error` says why it failed."""

    cell: Cell
    worker: str
    error: str | None = None


@dataclass(frozen=True)
class Lost:
    """A worker was lost with its cell; the cell goes back into the queue."""

    cell: Cell
    worker: str
    reason: str


@dataclass(frozen=True)
class Waiting:
    """Nothing happened for a moment."""


Event: TypeAlias = Began | Moved | Ended | Lost | Waiting


Events: TypeAlias = Generator[Event, None, None]


class Engine(Protocol):
    """Carries out cells somewhere; closing the generator ends all its work at once."""

    def carry_out(self, cells: Sequence[Cell], stop: StopRequest) -> Events:
        """Tell what happens until every cell has ended, or has stopped because of `stop`."""


class StopRequest:
    """Ctrl-C (or a polite kill) asks the engine to stop; a second one interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self.by_signal = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.by_signal:
            raise KeyboardInterrupt
        self.requested = self.by_signal = True
