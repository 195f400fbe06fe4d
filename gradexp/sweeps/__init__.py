"""A grid of runs: planned first, carried out here or on a cluster, resumed by the same command."""

from gradexp.sweeps.plan import Cell, Plan, plan_source, plan_sweep
from gradexp.sweeps.preview import plan_table
from gradexp.sweeps.running import SweepOptions, SweepOutcome, run_sweep
from gradexp.sweeps.status import SweepStatus, status, status_table, summary_line
from gradexp.sweeps.view import View, sweep_view

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
