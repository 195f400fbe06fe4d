"""What a run needs to go on after a kill, in one file that is whole or not there."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path
from typing import Any, Self

import torch

from gradexp.records import RunDir, write_atomically

State = dict[str, Any]
FORMAT = 3  # of what a checkpoint holds


class Checkpoints:
    """Saves a run's state now and then; how often changes no figure, so a clock may decide.

    As a context it saves the latest state when Ctrl-C ends the work within, wherever that stands.
    """

    def __init__(self, run: RunDir, seconds: float) -> None:
        self._path = run.checkpoint
        self._seconds = seconds
        self._saved_at = time.monotonic()
        self.latest: State | None = None

    def due(self) -> bool:
        """Whether enough time has passed since the last one."""
        return time.monotonic() - self._saved_at >= self._seconds

    def save(self) -> None:
        """Replace the checkpoint by the latest state."""
        # Into memory first: how far torch had come on a full disk need not be known.
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "state": self.latest}, buffer)
        write_atomically(self._path, buffer.getvalue())
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is KeyboardInterrupt and self.latest is not None:
            self.save()


def load(run: RunDir, device: torch.device) -> State | None:
    """The state of an interrupted run; None where there is none that this version can go on from.

    A checkpoint or a table may be damaged, or be one of another version of gradexp.
    """
    try:
        if not _sums_are_right(run.checkpoint):
            return None
        saved: Any = torch.load(run.checkpoint, map_location=device, weights_only=True)
    except torch.OutOfMemoryError:  # no damage, and no reason to begin anew
        raise
    except Exception:  # noqa: BLE001  damage takes any form
        return None
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        return None
    state: State = saved["state"]
    if not _tables_reach(run, state["recording"]["offsets"]):
        return None
    # Random states belong on the CPU wherever the net is.
    state["learner"]["random"] = {k: v.cpu() for k, v in state["learner"]["random"].items()}
    return state


def _sums_are_right(path: Path) -> bool:
    """Whether each part of the archive is what was written: torch reads on over flipped bits."""
    with zipfile.ZipFile(path) as parts:
        return parts.testzip() is None


def _tables_reach(run: RunDir, offsets: dict[str, int]) -> bool:
    """Whether every table still holds the rows that were written before the checkpoint."""
    sizes = {
        name: path.stat().st_size if (path := run.table_path(name)).exists() else 0
        for name in offsets
    }
    return all(sizes[name] >= offset for name, offset in offsets.items())
