"""A grid of runs: planned first, carried out here or on a cluster, resumed by the same command."""

from gradexp.sweep.plan import Cell, Plan, plan_source, plan_sweep
from gradexp.sweep.preview import plan_table
from gradexp.sweep.running import SweepOptions, SweepOutcome, run_sweep
from gradexp.sweep.status import SweepStatus, status, status_table, summary_line
from gradexp.sweep.view import View, sweep_view

__all__ = [
    "Cell",
    "Plan",
    "SweepOptions",
    "SweepOutcome",
    "SweepStatus",
    "View",
    "plan_source",
    "plan_sweep",
    "plan_table",
    "run_sweep",
    "status",
    "status_table",
    "summary_line",
    "sweep_view",
]
