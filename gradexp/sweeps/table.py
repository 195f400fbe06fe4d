"""`runs.csv`: one row a run, complete at every moment, and the state of every cell."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradexp.analysis import judge, rules_of
from gradexp.errors import RunError
from gradexp.records import DONE, FAILED, RUNNING, RunDir, write_atomically
from gradexp.sweeps.directory import SweepDir, csv_text

PLANNED, INTERRUPTED = "planned", "interrupted"
STATES = (PLANNED, RUNNING, INTERRUPTED, "finished", "diverged", FAILED)
FIGURES = (
    "steps",
    "epochs",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "units",
    "dead_units",
)
RESULT = ("status", *FIGURES, "verdict", "verdicts", "error", "seconds")
WRITING_SHARE = (
    0.05  # of the time that passes; rewriting 10,000 rows for each of them would not end
)

RunRow = dict[str, str]


class RunTable:
    """The rows of a sweep's runs, kept on disk; built anew from the run directories at the start.

    Verdicts are those that the runs ended with, or by the rules file `limits`. While a large sweep
    works, the file is replaced as often as that takes 5 % of the time.
    """

    def __init__(self, directory: SweepDir, limits: Path | None = None) -> None:
        self._directory, self._limits = directory, limits
        axes, rows = directory.read_plan()
        self.columns = ["run", *(name for name in axes if name != "run"), *RESULT]
        self.rows: dict[str, RunRow] = {
            row["run"]: {**row, **result_of(directory.run(row["run"]), limits)} for row in rows
        }
        self._next_write = 0.0
        self._changed = True

    def status(self, run: str) -> str:
        """The state of a run."""
        return self.rows[run]["status"]

    def counts(self, runs: Iterable[str] | None = None) -> Counter[str]:
        """How many runs are in each state; of all runs, or of these."""
        return Counter(self.status(run) for run in (self.rows if runs is None else runs))

    def begin(self, run: str) -> None:
        """A run has been handed to a worker."""
        self._put(run, {"status": RUNNING})

    def end(self, run: str, error: str | None) -> None:
        """A run has ended: read what it left; `error` is what to say when it left nothing."""
        result = result_of(self._directory.run(run), self._limits)
        if error and result["status"] != FAILED:
            result |= {"status": FAILED, "error": error}
        self._put(run, result)

    def stop(self) -> None:
        """Nothing runs any more: read again what was at work, and write the file."""
        for run, row in self.rows.items():
            if row["status"] == RUNNING:
                self._put(run, result_of(self._directory.run(run), self._limits))
        self._changed = True
        self._next_write = 0.0
        self.write_if_due()

    def _put(self, run: str, result: RunRow) -> None:
        self.rows[run] |= dict.fromkeys(RESULT, "") | result
        self._changed = True
        self.write_if_due()

    def write_if_due(self) -> None:
        """Replace the file when it is out of date and its turn has come."""
        began = time.monotonic()
        if not self._changed or began < self._next_write:
            return
        content = csv_text(self.columns, self.rows.values())
        write_atomically(self._directory.table, content.encode())
        ended = time.monotonic()
        self._next_write = ended + (ended - began) / WRITING_SHARE
        self._changed = False


def result_of(run: RunDir, limits: Path | None = None) -> RunRow:
    """What a run directory says of its run: state, figures, verdicts, error.

    A run that was begun and is neither done nor failed is interrupted; so is one whose manifest or
    summary is damaged: it will be run again.
    """
    if not run.path.is_dir():
        return {"status": PLANNED}
    try:
        manifest, summary = run.read_manifest(), run.read_summary()
    except RunError:
        return {"status": INTERRUPTED if run.manifest.exists() else PLANNED}
    status = str(manifest.get("status"))
    if status == FAILED:
        return {"status": FAILED, "error": str(manifest.get("error", "")), **_seconds(manifest)}
    if status not in DONE or not summary:
        return {"status": INTERRUPTED}
    if limits:
        verdicts = [verdict.name for verdict in judge(run, rules_of(run, limits))]
    else:
        verdicts = [str(verdict["name"]) for verdict in summary.get("verdicts", [])]
    return {
        "status": status,
        **{name: _text(summary.get(name)) for name in FIGURES},
        "verdict": verdicts[0] if verdicts else "",
        "verdicts": " ".join(verdicts),
        **_seconds(manifest),
    }


def _seconds(manifest: dict[str, Any]) -> RunRow:
    return {"seconds": _text(manifest.get("seconds"))}


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def mean_seconds(rows: Iterable[RunRow]) -> float:
    """Mean duration of the runs that are done; nan when none is."""
    times = [float(row["seconds"]) for row in rows if row["status"] in DONE and row.get("seconds")]
    return sum(times) / len(times) if times else math.nan


def pending_of(rows: Iterable[RunRow], *, retry_failed: bool = False) -> list[RunRow]:
    """The rows of runs that are still to be carried out."""
    settled = DONE if retry_failed else (*DONE, FAILED)
    return [row for row in rows if row["status"] not in settled]
