"""The sweep directory: the only owner of its file names, and of the plan on disk."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from gradexp.errors import RunError
from gradexp.records import RULES_FILE, RunDir, open_lock, remove_leftovers, write_atomically
from gradexp.sweeps.plan import Plan

PATIENCE_SECONDS = 20.0  # workers of a killed sweep hold its lock for a moment longer


class SweepDir:
    """One sweep on disk: its config, its plan, its runs and their table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "sweep.yaml"
        self.plan = path / "plan.csv"
        self.runs = path / "runs"
        self.table = path / "runs.csv"
        self.log = path / "workers.log"
        self.rules = path / RULES_FILE
        self.lock = path / ".lock"

    @classmethod
    def open(cls, path: Path) -> SweepDir:
        """An existing sweep directory; anything else is a `RunError`."""
        sweep = cls(path)
        if not sweep.plan.is_file():
            raise RunError(f"{path}: is not a sweep directory (no {sweep.plan.name})")
        return sweep

    def run(self, name: str) -> RunDir:
        """The run directory of that name, there or not."""
        return RunDir(self.runs / name)

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the sweep alone; yields a descriptor that workers inherit, so that they hold it too.

        Raises:
            RunError: another sweep is at work here, or the directory cannot be written.
        """
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            file = open_lock(self.lock)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from error
        with file:
            _wait_for_lock(file, self.path)
            _sign(file.fileno())
            written = self.config, self.plan, self.table, self.rules
            remove_leftovers(self.path, {path.name for path in written})
            yield file.fileno()

    def write_plan(self, plan: Plan) -> None:
        """Write `sweep.yaml` and `plan.csv`; rows of an earlier plan whose runs exist are kept."""
        for path in plan.cells[0].config.imports:
            with contextlib.suppress(shutil.SameFileError):
                shutil.copy(path, self.path)
        if rules := plan.cells[0].config.rules:
            with contextlib.suppress(shutil.SameFileError):
                shutil.copy(rules, self.rules)
        write_atomically(self.config, plan.text.encode())
        columns, rows = merged(plan, *self.read_plan(), self.runs)
        write_atomically(self.plan, csv_text(columns, rows).encode())

    def read_plan(self) -> tuple[list[str], list[dict[str, str]]]:
        """Columns and rows of `plan.csv`; a last line cut short is left out, no file is empty."""
        return read_csv(self.plan)


def _wait_for_lock(file: IO[str], path: Path) -> None:
    """Wait for the workers of a sweep that was killed; refuse at once where one is at work."""
    # The lock is inherited by workers. After a kill of the sweep they end by themselves within
    # seconds: that is worth waiting for, a sweep that lives is not.
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if _holder_lives(file) or time.monotonic() > give_up:
                raise RunError(
                    f"{path}: another sweep is working here; wait for it, or choose another --out"
                ) from error
        time.sleep(0.05)


def _sign(descriptor: int) -> None:
    """Leave this process's id in the lock; on a full disk the lock holds without it."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)  # whoever waited has read to its end


def _holder_lives(file: IO[str]) -> bool:
    """Whether the sweep that wrote its process id into the lock still runs on this machine."""
    file.seek(0)
    written = file.read()
    try:
        os.kill(int(written), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # somebody else's process: it is there
        return True
    return True


def merged(
    plan: Plan, old_columns: Sequence[str], old_rows: Iterable[dict[str, str]], runs: Path
) -> tuple[list[str], list[dict[str, str]]]:
    """The cells of a plan, then those of earlier plans that were begun."""
    fixed = ("seed", "id", "run")
    extra = [name for name in old_columns if name not in plan.axes and name not in fixed]
    names = {cell.run for cell in plan.cells}
    kept = [row for row in old_rows if row["run"] not in names and (runs / row["run"]).is_dir()]
    return [*plan.axes, *extra, *fixed], [*(cell.row() for cell in plan.cells), *kept]


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and whole rows of a CSV file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return [], []
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    rows = [row for row in reader if row.get("run") and None not in row]
    return list(reader.fieldnames or ()), rows


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    """A CSV file; what a row lacks is an empty field."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
