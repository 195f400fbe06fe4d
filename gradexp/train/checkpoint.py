"""What a run needs to go on after a kill, in one file that is whole or not there."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path
from typing import Any, Self

import torch

from gradexp.errors import RunError
from gradexp.records import RunDir, write_atomically

State = dict[str, Any]
FORMAT = 4  # of what a checkpoint holds
DIGEST_BYTES = 32  # SHA-256 of the rest comes first


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
        archive = buffer.getvalue()
        write_atomically(self._path, hashlib.sha256(archive).digest() + archive)
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is KeyboardInterrupt and self.latest is not None:
            self.save()


def load(run: RunDir, device: torch.device) -> State | None:
    """The state of an interrupted run; None where no checkpoint is.

    Raises:
        RunError: there is one from which nobody can go on, and why: it, a table or the manifest is
            damaged, or it is of another version of gradexp.
    """
    if not run.checkpoint.exists():
        return None
    if run.status() is None:
        raise RunError(f"{run.manifest.name} is missing or damaged")
    saved = _read(run.checkpoint, device)
    if saved["format"] != FORMAT:
        raise RunError(f"{run.checkpoint.name} is of another version of gradexp")
    state: State = saved["state"]
    _check_tables(run, state["recording"])
    # Random states belong on the CPU wherever the net is.
    state["learner"]["random"] = {k: v.cpu() for k, v in state["learner"]["random"].items()}
    return state


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    """What was saved, and no bit of it changed: torch itself reads on over flipped bits."""
    try:
        content = memoryview(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path.name} cannot be read: {error.strerror}") from error
    digest, archive = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if digest != hashlib.sha256(archive).digest():
        raise RunError(f"{path.name} is damaged, or of another version of gradexp")
    saved: dict[str, Any] = torch.load(io.BytesIO(archive), map_location=device, weights_only=True)
    return saved


def _check_tables(run: RunDir, recording: State) -> None:
    """Every table must still hold what was written before the checkpoint."""
    for name, digest in recording["digests"].items():
        path = run.table_path(name)
        try:
            kept = path.read_bytes()[: recording["offsets"][name]]
        except OSError as error:
            raise RunError(f"{path.name} cannot be read: {error.strerror}") from error
        if hashlib.sha256(kept).hexdigest() != digest:
            raise RunError(f"{path.name} is not what it was at the checkpoint")
