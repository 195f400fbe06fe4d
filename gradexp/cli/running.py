"""`gradexp run`: the run itself, and what is said at its end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from gradexp.analysis import diagnose
from gradexp.cli.screen import screen
from gradexp.cli.streams import progress, results
from gradexp.config import load_config
from gradexp.records import RunDir
from gradexp.report.terminal import run_table, verdict_table
from gradexp.train import Outcome, execute


def run_config(path: Path, overrides: list[str], out: Path, *, fresh: bool) -> None:
    """Carry out the run of a config; progress on stderr, results on stdout."""
    config = load_config(path, overrides)
    messages = progress()
    outcome = execute(config, out, fresh=fresh, observer=screen(messages))
    _say_how(outcome, messages)
    print_results(outcome.run, results())


def _say_how(outcome: Outcome, messages: Console) -> None:
    if outcome.already_done:
        messages.print("this run was finished already; --fresh begins it anew", markup=False)
    elif outcome.resumed_from is not None:
        messages.print(f"this run went on from step {outcome.resumed_from}", markup=False)
    elif outcome.begun_anew:
        messages.print(f"this run began anew: {outcome.begun_anew}", markup=False)


def print_results(run: RunDir, console: Console) -> None:
    """The table per layer, the reading in one line, the verdicts, and where everything lies."""
    console.print(run_table(run))
    console.print()
    said = diagnose(run)
    for line in (said.reading, *_remarks(run)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print()
    console.print(verdict_table(said.verdicts))
    console.print(f"\n{run.path}", markup=False, highlight=False, soft_wrap=True)


def _remarks(run: RunDir) -> list[str]:
    """What a reader of the figures must know of the data, and where finite values ended."""
    manifest = run.read_manifest()
    outcome = [str(manifest["outcome"])] if run.read_summary().get("nonfinite") else []
    return [*outcome, *(f"Data: {note}." for note in manifest["data"]["notes"])]
