"""Carry out a plan: skip what is done, run the rest, keep the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gradexp.analysis import judge_again
from gradexp.errors import EXIT_FAILED, EXIT_INTERRUPTED
from gradexp.records import FAILED
from gradexp.sweeps.directory import SweepDir
from gradexp.sweeps.events import Began, Ended, Engine, Event, StopRequest
from gradexp.sweeps.local import LocalEngine, threads_each, usable_cores
from gradexp.sweeps.plan import Cell, Plan
from gradexp.sweeps.table import RunTable, pending_of
from gradexp.sweeps.view import View

CHECKPOINT_SECONDS = 15.0


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is carried out; only the number of threads may change a last digit.

    Attributes:
        engine: worker processes here, or Ray tasks.
        workers: cells at a time; None for as many as the cores allow.
        address: of a Ray cluster; None starts one here.
        retry_failed: run failed cells again.
        fail_fast: stop after the first failure.
        checkpoint_seconds: the longest time whose work a kill can cost.
    """

    engine: Literal["local", "ray"] = "local"
    workers: int | None = None
    address: str | None = None
    retry_failed: bool = False
    fail_fast: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS


@dataclass(frozen=True)
class SweepOutcome:
    """What became of a sweep.

    Attributes:
        directory: where it lies.
        counts: how many of the plan's cells are in each state.
        already_done: how many of them needed nothing in this call.
        failures: the error of each failed cell, by the name of its run.
        interrupted: Ctrl-C left cells undone; the same command goes on.
    """

    directory: Path
    counts: Counter[str]
    already_done: int
    failures: dict[str, str]
    interrupted: bool

    @property
    def exit_code(self) -> int:
        """0 done, 1 a cell failed, 130 interrupted."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        return EXIT_FAILED if self.failures else 0


def run_sweep(
    plan: Plan, out: Path, options: SweepOptions | None = None, view: View | None = None
) -> SweepOutcome:
    """Carry out every cell of a plan that is not settled yet, in the sweep directory `out`.

    Raises:
        ConfigError: the engine cannot be used here.
        RunError: the directory is in use or cannot be written, or no worker can be started.
        KeyboardInterrupt: a second Ctrl-C; everything ended at once.
    """
    options, view = options or SweepOptions(), view or View()
    sweep = SweepDir(out)
    with sweep.locked() as lock, StopRequest() as stop:
        sweep.write_plan(plan)
        _judge_again(sweep, plan)
        table = RunTable(sweep)
        runs = [cell.run for cell in plan.cells]
        rows = [table.rows[run] for run in runs]
        left = pending_of(rows, retry_failed=options.retry_failed)
        names = {row["run"] for row in left}
        waiting = [cell for cell in plan.cells if cell.run in names]
        try:
            if waiting:
                _work(_engine(plan, sweep, lock, options), waiting, options, stop, table, view)
        finally:
            table.stop()
    return SweepOutcome(
        directory=out,
        counts=table.counts(runs),
        already_done=len(runs) - len(waiting),
        failures={run: table.rows[run]["error"] for run in runs if table.status(run) == FAILED},
        interrupted=bool(pending_of(rows)) and stop.by_signal,
    )


def _judge_again(sweep: SweepDir, plan: Plan) -> None:
    """What is done already is judged by the plan's rules too."""
    for cell in plan.cells:
        run = sweep.run(cell.run)
        if (cell.config.rules or run.rules.is_file()) and run.done():
            judge_again(run, cell.config)


def _engine(plan: Plan, sweep: SweepDir, lock: int, options: SweepOptions) -> Engine:
    workers = options.workers or max(1, usable_cores() // plan.resources.cpus)
    if options.engine == "local":
        threads = threads_each(plan.resources.cpus, workers)
        return LocalEngine(sweep, lock, workers, threads, options.checkpoint_seconds)
    from gradexp.sweeps.ray_engine import RayEngine

    return RayEngine(sweep, plan.resources, workers, options.address)


def _work(  # noqa: PLR0913, PLR0917  the six things that meet here, and only here
    engine: Engine,
    cells: Sequence[Cell],
    options: SweepOptions,
    stop: StopRequest,
    table: RunTable,
    view: View,
) -> None:
    """Follow the engine: every event goes to the table and to the screen."""
    table.write_if_due()
    view.opened(len(cells))
    try:
        with closing(engine.carry_out(cells, stop)) as events:
            for event in events:
                _note(event, table)
                view.told(event, table)
                if options.fail_fast and isinstance(event, Ended) and event.error:
                    stop.requested = True
    finally:
        view.closed()


def _note(event: Event, table: RunTable) -> None:
    if isinstance(event, Began):
        table.begin(event.cell.run)
    elif isinstance(event, Ended):
        table.end(event.cell.run, event.error)
    else:
        table.write_if_due()
