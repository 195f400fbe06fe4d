"""`--dry-run`: the cells of a plan, how many are left, and about how long they will take."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradexp.errors import RunError
from gradexp.sweeps.directory import SweepDir
from gradexp.sweeps.estimate import estimate
from gradexp.sweeps.local import threads_each, usable_cores
from gradexp.sweeps.plan import Plan
from gradexp.sweeps.table import RunRow, pending_of, result_of
from gradexp.sweeps.view import duration

SHOWN = 200


def plan_table(plan: Plan, out: Path, workers: int | None = None) -> RenderableType:
    """One row a cell with its state (the first 200), the count, and an estimate of time.

    Nothing is written, but a few cells may be tried for a moment in a folder that is then removed.
    """
    rows = _rows(plan, SweepDir(out))
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = (*plan.axes, "seed", "run", "status")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows[:SHOWN]:
        table.add_row(*(Text(row[name]) for name in columns))
    more = [Text(f"... and {len(rows) - SHOWN} more")] if len(rows) > SHOWN else []
    return Group(table, *more, Text(f"\n{_summary(plan, rows, workers)}"))


def _rows(plan: Plan, sweep: SweepDir) -> list[RunRow]:
    return [{**cell.row(), **result_of(sweep.run(cell.run))} for cell in plan.cells]


def _summary(plan: Plan, rows: list[RunRow], workers: int | None) -> str:
    left = pending_of(rows)
    at_once = min(workers or max(1, usable_cores() // plan.resources.cpus), max(1, len(left)))
    line = f"{len(rows)} cells, {len(left)} to run with {at_once} at a time"
    if not left:
        return line
    try:
        threads = threads_each(plan.resources.cpus, at_once)
        found = estimate(plan.cells, rows, {row["run"] for row in left}, at_once, threads)
    except RunError as error:
        return f"{line}; no estimate of time: {error}"
    return f"{line}; about {duration(max(1.0, found.seconds))}, an estimate from {found.basis}"
