"""`gradexp status`: the state of every cell, and why a cell failed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradexp.analysis import counted
from gradexp.errors import ConfigError
from gradexp.records import FAILED, RUNNING, RunDir, is_locked
from gradexp.sweeps.directory import SweepDir, read_csv
from gradexp.sweeps.table import INTERRUPTED, PLANNED, STATES, RunRow, RunTable, mean_seconds, result_of
from gradexp.sweeps.view import duration

STYLES = {FAILED: "bold red", "diverged": "yellow", RUNNING: "cyan", PLANNED: "dim"}


@dataclass(frozen=True)
class SweepStatus:
    """Where a sweep stands.

    Attributes:
        runs: the folder of its runs.
        axes: the names of its axes.
        rows: one row a cell, in the order of the plan, as in `runs.csv`.
        live: whether a sweep is at work there now.
    """

    runs: Path
    axes: list[str]
    rows: list[RunRow]
    live: bool

    @property
    def counts(self) -> Counter[str]:
        """How many cells are in each state."""
        return Counter(row["status"] for row in self.rows)


def status(path: Path, limits: Path | None = None) -> SweepStatus:
    """The state of every cell of a sweep directory, or of one run by itself.

    Done runs are judged by the rules file `limits` where it is given.

    Raises:
        ConfigError: there is no such directory, or the rules file is wrong.
        RunError: it is neither, or it cannot be read.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such directory; give a sweep or a run directory")
    if RunDir(path).manifest.is_file():
        return _of_run(RunDir(path), limits)
    sweep = SweepDir.open(path)
    columns, _ = sweep.read_plan()
    axes = [name for name in columns if name not in ("id", "run")]
    live = is_locked(sweep.lock)
    written = read_csv(sweep.table)[1] if live and not limits else []
    rows = written or list(RunTable(sweep, limits).rows.values())
    return SweepStatus(sweep.runs, axes, rows, live)


def _of_run(run: RunDir, limits: Path | None) -> SweepStatus:
    """A run by itself: as a sweep of one cell."""
    live = run.in_use()
    row = {"run": run.name, **result_of(run, limits)}
    if live:
        row["status"] = RUNNING
    return SweepStatus(run.path.parent, ["run"], [row], live)


def status_table(found: SweepStatus, most: int | None = None) -> RenderableType:
    """One row a cell, the errors in full below, and the counts.

    With `most`, only so many rows, those at work among them, and no errors: for a screen.
    """
    rows = found.rows if most is None else _at_hand(found.rows, max(1, most))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (*found.axes, "status", "verdict"):
        table.add_column(name, overflow="fold")
    for row in rows:
        style = STYLES.get(row["status"], "")
        table.add_row(
            *(Text(row.get(name, "")) for name in found.axes),
            Text(row["status"], style),
            Text(row.get("verdict", "")),
        )
    errors = _errors(found) if most is None else []
    return Group(table, *errors, Text(f"\n{summary_line(found)}"))


def _at_hand(rows: list[RunRow], most: int) -> list[RunRow]:
    """So many rows in the order of the plan, from just before the first one at work."""
    at_work = [index for index, row in enumerate(rows) if row["status"] == RUNNING]
    first = max(0, min(at_work[0] - 1 if at_work else 0, len(rows) - most))
    return rows[first : first + most]


def _errors(found: SweepStatus) -> list[Text]:
    """Why each failed cell failed, and where its traceback lies."""
    texts = []
    for row in found.rows:
        if row["status"] != FAILED:
            continue
        run = RunDir(found.runs / row["run"])
        where = run.traceback if run.traceback.is_file() else run.path
        texts.append(Text(f"\nfailed {row['run']}: {row['error']}\n  {where}", "red"))
    return texts


def summary_line(found: SweepStatus) -> str:
    """Counts in words, what is left, and how to go on."""
    counts = found.counts
    parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    line = f"{counted(len(found.rows), 'cell')}: {', '.join(parts)}"
    undone = sum(counts[state] for state in (PLANNED, RUNNING, INTERRUPTED))
    each = mean_seconds(found.rows)
    if undone and not math.isnan(each):
        line += f"; about {duration(each * undone)} of work left"
    if found.live:
        return f"{line}. A sweep is at work."
    if undone:
        return f"{line}. The same sweep command goes on."
    retry = " --retry-failed runs the failed cells again." if counts[FAILED] else ""
    return f"{line}.{retry}"
