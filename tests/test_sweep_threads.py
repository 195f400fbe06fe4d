"""Cores are shared: how many cells run at a time, and how many threads each of them has."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gradexp.errors import RunError
from gradexp.sweeps import Plan, SweepOptions, plan_sweep, plan_table, preview, run_sweep, running
from gradexp.sweeps.estimate import Estimate
from gradexp.sweeps.local import threads_each, usable_cores, worker_environment
from gradexp.sweeps.schema import Resources
from tests.sweeps import write_config

CORES = 8


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)), raising=False)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("cpus", "workers", "threads"),
    [(1, 1, 1), (1, 8, 1), (2, 4, 2), (4, 2, 4), (8, 2, 4), (8, 3, 2), (8, 16, 1), (9, 1, 8)],
)
def test_a_worker_has_what_a_cell_may_occupy_but_its_share_at_most(
    cpus: int, workers: int, threads: int
) -> None:
    assert threads_each(cpus, workers) == threads


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_a_worker_finds_what_the_sweep_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "/a", "/b"])
    monkeypatch.setenv("SOMETHING", "else")
    environment = worker_environment(3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["PYTHONPATH"] == f"/a{os.pathsep}/b"
    assert environment["SOMETHING"] == "else"


@dataclass
class Recorder:
    """Stands for an engine; notes what it is made with, and carries out nothing."""

    made: list[tuple[Any, ...]] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)

    def __call__(self, sweep: Any, *how: Any) -> Recorder:
        assert sweep.path.name == "out"
        self.made.append(how)
        return self

    def carry_out(self, cells: Sequence[Any], stop: Any) -> Any:
        assert not stop.requested
        self.cells += [cell.run for cell in cells]
        yield from ()


def _plan(folder: Path, *resources: str) -> Plan:
    settings = [f"sweep.resources.{setting}" for setting in resources]
    return plan_sweep(write_config(folder), settings, ["seed=0,1,2,3,4,5,6,7,8,9"])


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("resources", "workers", "expected"),
    [
        ((), None, (8, 1)),
        (("cpus=2",), None, (4, 2)),
        (("cpus=3",), None, (2, 3)),
        (("cpus=16",), None, (1, 8)),
        (("cpus=4",), 3, (3, 2)),
        ((), 3, (3, 1)),
        (("cpus=2", "gpus=0.5"), 1, (1, 2)),
    ],
)
def test_local_workers_and_their_threads(
    resources: Sequence[str],
    workers: int | None,
    expected: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Recorder()
    monkeypatch.setattr(running, "LocalEngine", engine)
    plan = _plan(tmp_path, *resources)
    options = SweepOptions(workers=workers, checkpoint_seconds=2.5)
    outcome = run_sweep(plan, tmp_path / "out", options)
    [(_, *how)] = engine.made
    assert how == [*expected, 2.5]
    assert engine.cells == [cell.run for cell in plan.cells]
    assert (outcome.counts, outcome.already_done) == ({"planned": 10}, 0)


@pytest.mark.usefixtures("eight_cores")
def test_a_checkpoint_every_15_seconds_unless_said_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Recorder()
    monkeypatch.setattr(running, "LocalEngine", engine)
    run_sweep(_plan(tmp_path), tmp_path / "out")
    assert engine.made[0][1:] == (8, 1, 15.0)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("resources", "workers", "expected"),
    [
        ((), None, (Resources(cpus=1, gpus=0.0), 8, "somewhere:1")),
        (("cpus=4", "gpus=0.5"), None, (Resources(cpus=4, gpus=0.5), 2, "somewhere:1")),
        (("gpus=1",), 3, (Resources(cpus=1, gpus=1.0), 3, "somewhere:1")),
    ],
)
def test_the_ray_engine_is_told_the_resources(
    resources: Sequence[str],
    workers: int | None,
    expected: tuple[Any, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Recorder()
    monkeypatch.setattr("gradexp.sweeps.ray_engine.RayEngine", engine)
    options = SweepOptions(engine="ray", workers=workers, address="somewhere:1")
    run_sweep(_plan(tmp_path, *resources), tmp_path / "out", options)
    assert engine.made == [expected]


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("resources", "workers", "cells", "at_once", "threads"),
    [
        ((), None, 10, 8, 1),
        ((), None, 3, 3, 1),
        (("cpus=3",), None, 10, 2, 3),
        (("cpus=4",), 4, 10, 4, 2),
        (("cpus=8",), 4, 2, 2, 4),
        (("cpus=16",), None, 10, 1, 8),
    ],
)
def test_a_dry_run_counts_the_same_workers(  # noqa: PLR0917
    resources: Sequence[str],
    workers: int | None,
    cells: int,
    at_once: int,
    threads: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def estimate(*question: Any) -> Estimate:
        asked.append(question)
        return Estimate(7384.0, "thin air")

    monkeypatch.setattr(preview, "estimate", estimate)
    settings = [f"sweep.resources.{setting}" for setting in resources]
    seeds = ",".join(map(str, range(cells)))
    plan = plan_sweep(write_config(tmp_path), settings, [f"seed={seeds}"])
    console = Console(width=200, file=io.StringIO())
    console.print(plan_table(plan, tmp_path / "out", workers))
    [(planned, rows, left, *how)] = asked
    assert how == [at_once, threads]
    assert planned == plan.cells
    assert left == {row["run"] for row in rows} == {cell.run for cell in plan.cells}
    assert console.file.getvalue().splitlines()[-1] == (
        f"{cells} cells, {cells} to run with {at_once} at a time; "
        "about 2 h 3 min, an estimate from thin air"
    )


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(("seconds", "said"), [(0.0, "about 1 s"), (1.4, "about 1 s")])
def test_no_sweep_takes_less_than_a_second(
    seconds: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "estimate", lambda *_: Estimate(seconds, "thin air"))
    console = Console(width=200, file=io.StringIO())
    console.print(plan_table(_plan(tmp_path), tmp_path / "out"))
    assert f"; {said}, an estimate from thin air" in console.file.getvalue()


def test_an_estimate_that_fails_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def estimate(*_: Any) -> Estimate:
        raise RunError("it is late")

    monkeypatch.setattr(preview, "estimate", estimate)
    console = Console(width=200, file=io.StringIO())
    console.print(plan_table(_plan(tmp_path), tmp_path / "out", 2))
    last = console.file.getvalue().splitlines()[-1]
    assert last == "10 cells, 10 to run with 2 at a time; no estimate of time: it is late"


@pytest.mark.usefixtures("eight_cores", "forks")
def test_a_worker_keeps_to_its_threads_and_to_itself(tmp_path: Path) -> None:
    """Torch and numpy have two threads, and Ctrl-C on the terminal does not reach the worker."""
    witness = tmp_path / "witness.json"
    grid = ["data.mode=witness", f"data.marker={witness}", "train.steps=0"]
    plan = plan_sweep(write_config(tmp_path), ["sweep.resources.cpus=2"], grid)
    assert run_sweep(plan, tmp_path / "out", SweepOptions(workers=4)).counts == {"finished": 1}
    told = json.loads(witness.read_text())
    assert (told["threads"], told["omp"]) == (2, "2")
    assert told["group"] == told["session"] == told["pid"] != os.getpid()
    assert told["polite kill ends it"]
    manifest = json.loads(next(tmp_path.glob("out/runs/*/manifest.json")).read_text())
    assert manifest["threads"] == 2
