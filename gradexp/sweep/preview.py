"""`--dry-run`: the cells of a plan, how many are left, and about how long they will take."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradexp.sweep.directory import SweepDir
from gradexp.sweep.local import usable_cores
from gradexp.sweep.plan import Plan
from gradexp.sweep.table import Row, mean_seconds, pending_of, result_of
from gradexp.sweep.view import duration

SHOWN = 200


def plan_table(plan: Plan, out: Path, workers: int | None = None) -> RenderableType:
    """One row a cell with its state (the first 200), the count, and an estimate of time.

    The estimate is the mean duration of the plan's runs that are done, times those that are left,
    divided by the workers; before the first one is done there is none.
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


def _rows(plan: Plan, sweep: SweepDir) -> list[Row]:
    return [{**cell.row(), **result_of(sweep.run(cell.run))} for cell in plan.cells]


def _summary(plan: Plan, rows: list[Row], workers: int | None) -> str:
    left = pending_of(rows)
    at_once = min(workers or max(1, usable_cores() // plan.resources.cpus), max(1, len(left)))
    line = f"{len(rows)} cells, {len(left)} to run with {at_once} at a time"
    each = mean_seconds(rows)
    if not left:
        return line
    if math.isnan(each):
        return f"{line}; how long is known when one of them is done"
    return f"{line}; about {duration(each * len(left) / at_once)}"
