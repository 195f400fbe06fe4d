"""A sweep that is killed at any moment goes on by the same command, to the same bytes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gradexp.records import RunDir
from tests.sweeps import repeatable, start, states, workers_of, write_config

GRID = ("model.depth=2,3", "model.activation=relu,tanh", "seed=0,1,2,3", "train.steps=160")
CELLS = 16
PATIENCE = 180.0

Moment = Callable[[Path], object]


def _lines(file: str, count: int) -> Moment:
    """Some unfinished run has written so many lines of a table."""

    def reached(out: Path) -> bool:
        return any(
            path.read_bytes().count(b"\n") >= count
            for path in out.glob(f"runs/*/{file}")
            if not (path.parent / "summary.json").exists()
        )

    return reached


def _some(pattern: str) -> Moment:
    return lambda out: next(out.glob(pattern), None)


def _finished(more: int) -> Callable[[Path], Moment]:
    def from_now(out: Path) -> Moment:
        goal = len(list(out.glob("runs/*/summary.json"))) + more
        return lambda out: len(list(out.glob("runs/*/summary.json"))) >= goal

    return from_now


def _fixed(moment: Moment) -> Callable[[Path], Moment]:
    return lambda _: moment


def _half_written(out: Path) -> Moment:
    """Where files are written too quickly to be seen, a finished cell must do."""
    seen, finished = _some("runs/*/.*.tmp"), _finished(2)(out)
    return lambda out: seen(out) or finished(out)


MOMENTS: dict[str, Callable[[Path], Moment]] = {
    "first file": _fixed(_some("*")),
    "plan": _fixed(_some("plan.csv")),
    "first run directory": _fixed(_some("runs/*")),
    "manifest": _fixed(_some("runs/*/manifest.json")),
    "half-written file": _half_written,
    "first steps": _fixed(_lines("steps.csv", 20)),
    "checkpoint": _fixed(_some("runs/*/checkpoint.pt")),
    "half the steps": _fixed(_lines("steps.csv", 60)),
    "last probe": _fixed(_lines("signal.csv", 15)),
    "summary": _finished(1),
    "two more": _finished(2),
    "three more": _finished(3),
}

SECONDS_INTO_A_CELL = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A config, and what a sweep of it leaves that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_config(folder)
    _finish(config, folder / "out")
    return config, repeatable(folder / "out")


def _finish(config: Path, out: Path) -> None:
    process = start(config, out, *GRID)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert states(out) == ["finished"] * CELLS


def _wait_for(moment: Moment, out: Path, process: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < give_up:
        if moment(out):
            return
        time.sleep(0.002)


def _begun(out: Path) -> set[str]:
    return {path.name for path in out.glob("runs/*")}


def _ended(out: Path) -> dict[str, int]:
    """When each finished run was finished: one that is run again would have another time."""
    return {
        path.parent.name: path.stat().st_mtime_ns
        for path in out.glob("runs/*/manifest.json")
        if RunDir(path.parent).done()
    }


@pytest.mark.parametrize("victims", ["parent", "both"])
def test_the_same_command_goes_on_after_a_kill(
    victims: str, undisturbed: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    config, expected = undisturbed
    out = tmp_path / "out"
    moments = list(MOMENTS.values())[victims == "both" :: 2]
    finished: dict[str, int] = {}
    kills = 0
    for moment in moments:
        reached = moment(out)
        process = start(config, out, *GRID, workers=1)
        _wait_for(reached, out, process)
        workers = workers_of(process) if victims == "both" else []
        kills += process.poll() is None
        for pid in [process.pid, *workers]:
            with contextlib.suppress(ProcessLookupError):  # a worker may end with its parent
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
        assert finished.items() <= _ended(out).items()
        finished = _ended(out)
    _finish(config, out)
    assert kills == len(moments)
    assert finished.items() <= _ended(out).items()
    assert repeatable(out) == expected


def test_a_killed_worker_costs_its_cell_one_retry(
    undisturbed: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    config, expected = undisturbed
    out = tmp_path / "out"
    process = start(config, out, *GRID, workers=1)
    killed: set[int] = set()
    for delay in SECONDS_INTO_A_CELL:
        begun = _begun(out)
        _wait_for(lambda out, begun=begun: _begun(out) - begun, out, process)
        time.sleep(delay)
        victim = workers_of(process)[0]
        os.kill(victim, signal.SIGKILL)
        killed.add(victim)
    _, errors = process.communicate(timeout=PATIENCE)
    assert len(killed) == 8
    assert process.returncode == 0, errors
    assert "retry" in errors
    assert repeatable(out) == expected
