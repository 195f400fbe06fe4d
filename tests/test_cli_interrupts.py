"""Ctrl-C and polite kills: how a command ends, what it says, and that the same command goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradexp.records import RunDir
from tests import sweeps
from tests.conftest import StopAt
from tests.sweeps import PATIENCE, states, wait_until, write_config
from tests.terminals import Answer, Terminal, call, displays, terminal

__all__ = ["displays", "terminal"]

Start = Callable[..., "subprocess.Popen[str]"]
TO_GO_ON = "interrupted; to go on: "


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command is called in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def interrupted(answer: Answer) -> list[str]:
    """The command that goes on; an interrupted one says nothing else at its end."""
    assert answer.exit_code == 130
    *_, before, line = answer.stderr.splitlines()
    assert before == ""  # what a terminal shows of Ctrl-C stands on a line of its own
    assert line.startswith(TO_GO_ON)
    program, *words = shlex.split(line.removeprefix(TO_GO_ON))
    assert program == "gradexp"
    return words


@pytest.fixture
def stops_at_5(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A run is interrupted as soon as it tells of five steps or more."""
    with monkeypatch.context() as patch:
        patch.setattr("gradexp.cli.running.screen", lambda _: StopAt(5))
        yield patch


def test_the_command_to_go_on_goes_on(
    tiny: Path, here: Path, stops_at_5: pytest.MonkeyPatch
) -> None:
    config = tiny.rename(here / "my --fresh net.yaml")
    arguments = ["--set", "model={family: mlp, depth: 2}", "--fresh", "--out", "my --fresh runs"]
    answer = call("run", config.name, *arguments)
    assert answer.stdout == ""
    words = interrupted(answer)
    assert words == ["run", config.name, *(word for word in arguments if word != "--fresh")]
    stops_at_5.undo()
    assert "this run went on from step 4\n" in call(*words).stderr


COMMANDS = {
    "run a --fresh": "gradexp.cli.running.run_config",
    "sweep a --workers 2": "gradexp.sweeps.plan_sweep",
    "status a": "gradexp.cli.sweeping.show_status",
    "report a --by depth": "gradexp.report.make_report",
    "list": "gradexp.cli.listing.listing",
    "show a": "gradexp.config.load_config",
    "schema": "gradexp.sweeps.schema.schema_with_sweep",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_interrupted(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS[command], interrupt)
    words = command.split()
    assert call(*words) == Answer(
        130, "", f"\n{TO_GO_ON}gradexp {command.removesuffix(' --fresh')}\n"
    )


def test_ctrl_c_takes_the_picture_down_before_it_speaks(
    tiny: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        assert terminal.drawn()[0].startswith("tiny ")
        raise KeyboardInterrupt

    monkeypatch.setattr("gradexp.cli.screen.LiveScreen.progressed", interrupt)
    assert call("run", tiny, stderr=terminal).exit_code == 130
    assert terminal.seen == ["", f"{TO_GO_ON}gradexp run {tiny}"]
    assert terminal.screen.cursor
    assert terminal.live == []


# --- in processes of their own ---


@pytest.fixture
def start(forks: None, here: Path) -> Iterator[Start]:
    """Begin `gradexp ARGUMENTS...`; it is ended after the test, whatever came of it."""
    assert forks is None
    begun: list[subprocess.Popen[str]] = []

    def begin(*arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "gradexp", *map(str, arguments)],
            cwd=here,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "100"},
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        sweeps.end(process)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=PATIENCE)
    return process.returncode, stdout, stderr


def at_work(runs: Path) -> bool:
    """Whether a run has written some steps."""
    return any(path.stat().st_size > 1000 for path in runs.glob("*/steps.csv"))


def endless(tiny: Path) -> list[str | Path]:
    return ["run", tiny, "--set", "train.steps=1000000", "--set", "probe.every=50"]


def test_ctrl_c_ends_a_run_with_a_checkpoint(tiny: Path, here: Path, start: Start) -> None:
    process = start(*endless(tiny))
    wait_until(lambda: at_work(here / "runs"), process)
    process.send_signal(signal.SIGINT)
    answer = Answer(*ended(process))
    assert interrupted(answer) == [*map(str, endless(tiny))]
    assert answer.stdout == ""
    (run,) = (here / "runs").iterdir()
    assert (run / "checkpoint.pt").is_file()
    assert call("status", run).lines[1].split()[-1] == "interrupted"


def test_a_polite_kill_ends_a_run_at_once_and_loses_no_file(
    tiny: Path, here: Path, start: Start
) -> None:
    process = start(*endless(tiny))
    wait_until(lambda: at_work(here / "runs"), process)
    process.terminate()
    code, stdout, _ = ended(process)
    assert (code, stdout) == (-signal.SIGTERM, "")
    (run,) = (here / "runs").iterdir()
    assert call("status", run).lines[1].split()[-1] == "interrupted"
    assert json.loads((run / "manifest.json").read_text())["status"] == "running"
    assert len(RunDir(run).read("layers")) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_asked_to_stop_keeps_what_is_done(
    here: Path, start: Start, number: signal.Signals
) -> None:
    """Of two cells at one worker, the second is stopped while it waits."""
    words = ["sweep", str(write_config(here)), "--grid", "data.mode=fine,lingers", "--workers", "1"]
    words += ["--set", f"data.marker={here / 'marker'}", "--set", "train.steps=5", "--out", "out"]
    process = start(*words)
    wait_until((here / "marker.begun").exists, process)
    process.send_signal(number)
    code, stdout, stderr = ended(process)
    assert code == 130
    assert states(here / "out") == ["finished", "interrupted"]
    assert "1 finished" in stdout
    assert "1 interrupted" in stdout
    assert stdout.rstrip().endswith("\nout")
    assert stderr.splitlines()[-1] == TO_GO_ON + shlex.join(["gradexp", *words])
    assert "Traceback" not in stderr
