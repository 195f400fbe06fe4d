"""`gradexp sweep` and `gradexp status`: what they print."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from rich.live import Live

from gradexp.cli.errors import to_go_on
from gradexp.cli.streams import progress, results
from gradexp.sweeps import (
    Plan,
    SweepOptions,
    plan_table,
    run_sweep,
    status,
    status_table,
    sweep_view,
)

WATCH_SECONDS = 1.0
LINES_BELOW = 6  # the header, the counts, and room for them to wrap


def print_plan(plan: Plan, directory: Path, workers: int | None) -> None:
    """The cells of a sweep and an estimate of its time; nothing is run or written."""
    results().print(plan_table(plan, directory, workers))


def carry_out(plan: Plan, directory: Path, options: SweepOptions) -> int:
    """Run what is not settled yet; progress on stderr, the state on stdout; the exit code."""
    console, messages = results(), progress()
    outcome = run_sweep(plan, directory, options, view=sweep_view(messages))
    console.print(status_table(status(directory)))
    console.print(f"\n{directory}", markup=False, highlight=False, soft_wrap=True)
    if outcome.interrupted:
        messages.print(to_go_on(), markup=False, highlight=False, soft_wrap=True)
    return outcome.exit_code


def show_status(directory: Path, limits: Path | None, *, watch: bool) -> None:
    """Print the state of a sweep once, or again and again until it has ended."""
    console = results()
    found = status(directory, limits)
    if not watch:
        console.print(status_table(found))
        return
    with (
        contextlib.suppress(KeyboardInterrupt),  # watching ends, the sweep goes on
        Live(console=console, auto_refresh=False) as live,
    ):
        while found.live:
            live.update(status_table(found, console.height - LINES_BELOW), refresh=True)
            time.sleep(WATCH_SECONDS)
            found = status(directory, limits)
        live.update(status_table(found), refresh=True)
