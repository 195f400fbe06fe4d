"""The run directory: the only owner of its file names."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from gradexp.errors import RunError
from gradexp.records.files import (
    TableWriter,
    empty_cells,
    read_json,
    read_table,
    remove_leftovers,
    write_atomically,
    write_json,
)
from gradexp.records.tables import TABLES, Column

RUNNING, FINISHED, DIVERGED, FAILED = "running", "finished", "diverged", "failed"
DONE = (FINISHED, DIVERGED)
RULES_FILE = "rules.yaml"  # in the directory of a run or sweep


class RunDir:
    """One run on disk: its config, its tables, its manifest and its summary."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.manifest = path / "manifest.json"
        self.summary = path / "summary.json"
        self.evidence = path / "evidence.json"
        self.rules = path / RULES_FILE
        self.checkpoint = path / "checkpoint.pt"
        self.traceback = path / "traceback.txt"
        self.lock = path / ".lock"

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run directory; anything else is a `RunError`."""
        run = cls(path)
        if not run.manifest.is_file():
            raise RunError(f"{path}: is not a run directory (no {run.manifest.name})")
        return run

    def make(self) -> None:
        """Make the directory.

        Raises:
            RunError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from error

    @property
    def name(self) -> str:
        """The name of the directory: `<name>-<id>`."""
        return self.path.name

    def table_path(self, table: str) -> Path:
        """Where the table of that name lies."""
        return self.path / TABLES[table].file_name

    def read(self, table: str) -> pd.DataFrame:
        """The table of that name as a frame; empty when it was not written yet."""
        return read_table(self.table_path(table), TABLES[table])

    def empty_cells(self, table: str, column: str) -> np.ndarray:
        """Where a column of that table has no value, [rows]; `read` shows nan there."""
        return empty_cells(self.table_path(table), TABLES[table], column)

    def writer(self, table: str, offset: int = 0, added: Sequence[Column] = ()) -> TableWriter:
        """A writer that continues the table of that name after `offset` bytes.

        `added` are columns of this run's own.
        """
        return TableWriter(self.table_path(table), TABLES[table].with_columns(added), offset)

    def read_manifest(self) -> dict[str, Any]:
        """Status, versions, device, threads, data fingerprint, times and outcome."""
        return dict(read_json(self.manifest))

    def write_manifest(self, content: dict[str, Any]) -> None:
        """Replace the manifest."""
        write_json(self.manifest, content)

    def write_traceback(self, text: str) -> None:
        """Leave what an error of the program looked like."""
        write_atomically(self.traceback, text.encode())

    def read_summary(self) -> dict[str, Any]:
        """Final figures; empty when the run has not ended."""
        return dict(read_json(self.summary)) if self.summary.is_file() else {}

    def write_summary(self, content: dict[str, Any]) -> None:
        """Replace the summary."""
        write_json(self.summary, content)

    def status(self) -> str | None:
        """The recorded status; None when there is no readable manifest."""
        with contextlib.suppress(RunError):
            return str(self.read_manifest().get("status"))
        return None

    def done(self) -> bool:
        """Whether the run ended, finished or diverged, and its summary can be read."""
        with contextlib.suppress(RunError):
            return self.status() in DONE and bool(self.read_summary())
        return False

    def _written(self) -> list[Path]:
        """All that a run writes under names of its own, the lock left out."""
        tables = map(self.table_path, TABLES)
        results = self.manifest, self.summary, self.evidence, self.traceback
        return [self.config, self.rules, self.checkpoint, *results, *tables]

    def remove_leftovers(self) -> None:
        """Remove half-written files of a process that was killed."""
        remove_leftovers(self.path, {path.name for path in self._written()})

    def clear(self, keep: Iterable[Path] = ()) -> None:
        """Remove what a run wrote, but not the lock that is being held, nor `keep`.

        What has another name is somebody else's, and what lies behind a link may be.

        Raises:
            RunError: the directory itself is a link.
        """
        if self.path.is_symlink():
            raise RunError(f"{self.path}: is a link, behind which nothing is removed")
        here = self.path.resolve()
        kept = {path.name for path in keep if path.parent == here}
        for path in self._written():
            if path.name in kept:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def take_over(self, other: RunDir) -> None:
        """Replace what this run wrote by what another attempt wrote, elsewhere on this disk.

        The manifest comes last: whoever is killed before leaves a run that begins anew.

        Raises:
            RunError: this directory is a link.
        """
        self.make()
        self.clear()
        for path in sorted(other.path.iterdir(), key=lambda path: path == other.manifest):
            path.replace(self.path / path.name)
        other.path.rmdir()

    def in_use(self) -> bool:
        """Whether a process is working on the run; nothing is held or made."""
        return is_locked(self.lock)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory alone; the system lets go of it when the process ends."""
        with lock_file(self.lock, f"{self.path}: another process is working on this run"):
            yield


def is_locked(path: Path) -> bool:
    """Whether somebody holds a lock file; it is only tried, never kept."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def open_lock(path: Path) -> IO[str]:
    """A lock file to read and write, made where there is none; a link is an `OSError`.

    It may lead to a file of somebody's, which is not gradexp's to write.
    """
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")


@contextlib.contextmanager
def lock_file(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file alone, or raise a `RunError` with the words of `refusal`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open_lock(path)
    except OSError as error:
        raise RunError(f"{path.parent}: cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(refusal) from error
        yield
