"""The Ray engine without a cluster: what Ray is asked for, and what becomes of its answers.

That real clusters answer so is tested with one.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gradexp.errors import ConfigError, RunError
from gradexp.records import RunDir
from gradexp.sweeps import Plan, SweepOptions, SweepOutcome, View, plan_sweep, run_sweep
from gradexp.sweeps.directory import SweepDir
from gradexp.sweeps.events import Began, Event
from gradexp.sweeps.ray_engine import (
    Bell,
    carry_out_elsewhere,
    interrupted_by,
    packed,
    unpack,
)
from gradexp.train import execute
from tests.conftest import StopAt
from tests.sweeps import repeatable, rows, states, write_config


class RayError(Exception):
    """What goes wrong in a cluster."""


@dataclass(eq=False)
class Task:
    """A function that the cluster is asked to call, and how."""

    ray: FakeRay
    function: Callable[..., bytes]
    how: dict[str, Any] = field(default_factory=dict)

    def options(self, **how: Any) -> Task:
        self.ray.heard.append(("options", how))
        return Task(self.ray, self.function, how)

    def remote(self, *arguments: Any) -> Reference:
        reference = Reference(self, arguments)
        self.ray.waiting.append(reference)
        self.ray.most = max(self.ray.most, len(self.ray.waiting))
        return reference


@dataclass(eq=False)
class Reference:
    """One call to come."""

    task: Task
    arguments: tuple[Any, ...]

    @property
    def run(self) -> Any:
        """The name of its run directory; what comes before is the bell."""
        return self.arguments[1]


@dataclass(eq=False)
class FakeBell:
    """An actor: each of its methods is what is asked for, and the reference it answers with."""

    ray: FakeRay

    def remote(self) -> FakeBell:
        return self

    @property
    def heard(self) -> FakeBell:
        return self

    @property
    def ring(self) -> SimpleNamespace:
        return SimpleNamespace(remote=self._ring)

    def _ring(self) -> None:
        self.ray.heard.append(("ring",))
        self.ray.rung = True


class FakeRay:
    """As much of Ray as a sweep uses; a task runs here when it is waited for."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.calls: list[tuple[Any, ...]] = []
        self.waiting: list[Reference] = []
        self.most = 0
        self.resources: dict[str, float] = {"CPU": 1.0}
        self.initialized = False
        self.refuses: Exception | None = None
        self.answer: Callable[[Reference], bytes] = lambda r: r.task.function(*r.arguments)
        self.busy = False  # no task ends before the bell rings
        self.deaf = False  # nor then
        self.rung = False
        self.bell = FakeBell(self)

    def is_initialized(self) -> bool:
        return self.initialized

    def init(self, address: str, **options: Any) -> None:
        if self.refuses:
            raise self.refuses
        self.heard.append(("init", address, options))

    def shutdown(self) -> None:
        self.heard.append(("shutdown",))

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, function: Callable[..., bytes] | None = None, **how: Any) -> Any:
        if function:
            return Task(self, function)
        self.heard.append(("actor", how))
        return lambda _: self.bell

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        assert timeout > 0
        if references == [self.bell]:
            time.sleep(0.001)
            return (references, []) if self.rung else ([], references)
        assert set(references) == set(self.waiting)
        ended = [each for each in references if self.rung or not self.busy]
        ready = [] if self.deaf else ended[:1]
        self.waiting = [each for each in self.waiting if each not in ready]
        return ready, self.waiting

    def get(self, reference: Reference | FakeBell) -> bytes | None:
        if isinstance(reference, FakeBell):
            return None
        bell, *arguments = reference.arguments
        assert bell == [self.bell]
        self.calls.append(tuple(arguments))
        return self.answer(reference)

    def cancel(self, reference: Reference, *, force: bool = False) -> None:
        self.heard.append(("cancel", reference.run, force))


LOCAL = {"log_to_driver": False, "logging_level": logging.ERROR}


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """To how many threads torch was told to keep."""
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    return told


def plan_of(folder: Path, *grid: str, overrides: tuple[str, ...] = ()) -> Plan:
    return plan_sweep(write_config(folder), ["train.steps=0", *overrides], grid or ["seed=0,1,2"])


def on_ray(plan: Plan, out: Path, view: View | None = None, **options: Any) -> SweepOutcome:
    return run_sweep(plan, out, SweepOptions(**{"engine": "ray", **options}), view)


def left_by(status: str, **more: Any) -> bytes:
    """The archive of a run that came so far."""
    manifest = b'{"status": "%s"%s}' % (
        status.encode(),
        b"".join(b', "%s": "%s"' % (k.encode(), v.encode()) for k, v in more.items()),
    )
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("manifest.json", manifest)
        archive.writestr("summary.json", b'{"steps": 1}')
    return buffer.getvalue()


def test_runs_come_home_as_this_machine_would_have_left_them(
    tmp_path: Path, ray: FakeRay, threads: list[int]
) -> None:
    plan = plan_of(tmp_path, overrides=("sweep.resources={cpus: 2, gpus: 0.5}",))
    assert on_ray(plan, tmp_path / "ray", workers=3).counts == {"finished": 3}
    assert ray.heard == [
        ("init", "local", {"num_cpus": 6, "include_dashboard": False, **LOCAL}),
        ("options", {"num_cpus": 2, "num_gpus": 0.5, "max_retries": 3}),
        ("actor", {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}),
        ("shutdown",),
    ]
    assert [call[0] for call in ray.calls] == [cell.run for cell in plan.cells]
    assert threads == [2, 2, 2]
    for cell in plan.cells:
        execute(cell.config, tmp_path / "here")
        mine, theirs = (
            {path.name for path in folder.iterdir() if path.name != ".lock"}
            for folder in (tmp_path / "here" / cell.run, tmp_path / "ray" / "runs" / cell.run)
        )
        assert mine == theirs
    assert len(repeatable(tmp_path / "ray")) > 3


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("10.0.0.1:6379", [(("10.0.0.1", 6379), 5.0)]),
        ("ray://head:10001", [(("head", 10001), 5.0)]),
        ("auto", []),
    ],
)
def test_a_cluster_elsewhere_is_looked_for_and_used_as_it_is(
    address: str, asked: list[Any], tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[Any] = []

    def dial(place: tuple[str, int], patience: float) -> Any:
        dialled.append((place, patience))
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(socket, "create_connection", dial)
    ray.answer = lambda _: left_by("finished")
    assert on_ray(plan_of(tmp_path), tmp_path / "out", address=address).exit_code == 0
    assert dialled == asked
    assert ray.heard[0] == ("init", address, LOCAL)
    assert ray.heard[-1] == ("shutdown",)


def test_a_cluster_in_use_is_neither_started_nor_shut_down(tmp_path: Path, ray: FakeRay) -> None:
    ray.initialized = True
    ray.answer = lambda _: left_by("finished")
    assert on_ray(plan_of(tmp_path), tmp_path / "out", address="nowhere:1").exit_code == 0
    assert [what for what, *_ in ray.heard] == ["options", "actor"]


@pytest.mark.parametrize("error", [ConnectionError("no"), ValueError("no"), RuntimeError("no")])
def test_a_cluster_that_does_not_answer_is_said(
    error: Exception, tmp_path: Path, ray: FakeRay
) -> None:
    ray.refuses = error
    with pytest.raises(ConfigError, match=r"^--address auto: no Ray cluster: no$"):
        on_ray(plan_of(tmp_path), tmp_path / "out", address="auto")


@pytest.mark.parametrize(
    ("cores", "cpus", "most"), [(4.0, 2, 4), (3.0, 1, 6), (1.0, 4, 1), (None, 1, 2)]
)
def test_no_more_tasks_are_handed_over_than_two_for_each_that_can_run(
    cores: float | None, cpus: int, most: int, tmp_path: Path, ray: FakeRay
) -> None:
    ray.resources = {} if cores is None else {"CPU": cores}
    ray.answer = lambda _: left_by("finished")
    plan = plan_of(tmp_path, "seed=0,1,2,3,4,5,6,7", overrides=(f"sweep.resources.cpus={cpus}",))
    assert on_ray(plan, tmp_path / "out").counts == {"finished": 8}
    assert ray.most == most


def test_what_fails_in_the_cluster_fails_alone(tmp_path: Path, ray: FakeRay) -> None:
    plan = plan_of(tmp_path)
    answers = iter([None, left_by("failed", error="inside"), left_by("diverged")])

    def answer(_: Reference) -> bytes:
        archive = next(answers)
        if archive is None:
            raise RayError("Traceback\n  line\nNodeDied: gone\n")
        return archive

    ray.answer = answer
    outcome = on_ray(plan, tmp_path / "out")
    assert outcome.exit_code == 1
    assert states(tmp_path / "out") == ["failed", "failed", "diverged"]
    assert [row["error"] for row in rows(tmp_path / "out" / "runs.csv")] == [
        "NodeDied: gone",
        "inside",
        "",
    ]
    assert outcome.failures == {
        plan.cells[0].run: "NodeDied: gone",
        plan.cells[1].run: "inside",
    }


class CtrlC(View):
    """Stops the sweep when its second cell has begun."""

    begun = 0

    def told(self, event: Event, table: Any) -> None:
        del table
        self.begun += isinstance(event, Began)
        if self.begun == 2:
            self.begun += 1
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("unheard_signals_fail")
def test_on_ctrl_c_every_task_is_asked_to_stop_and_comes_home(tmp_path: Path, ray: FakeRay) -> None:
    """One had begun and brings its checkpoint, the others never began."""
    plan = plan_of(tmp_path)
    first, *_ = runs = [cell.run for cell in plan.cells]
    ray.resources, ray.busy = {"CPU": 8.0}, True
    ray.answer = lambda reference: left_by("running") if reference.run == first else b""
    outcome = on_ray(plan, tmp_path / "out", CtrlC())
    assert (outcome.interrupted, outcome.counts) == (True, {"interrupted": 1, "planned": 2})
    assert [call[0] for call in ray.calls] == runs
    assert ray.heard[-2:] == [("ring",), ("shutdown",)]


@pytest.mark.usefixtures("unheard_signals_fail")
def test_tasks_that_do_not_stop_are_killed(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a minute, of which each look takes a second here."""
    now = 0.0
    waits = 0
    wait = ray.wait

    def slowly(references: list[Reference], timeout: float) -> Any:
        nonlocal now, waits
        now, waits = now + 1.0, waits + 1
        return wait(references, timeout)

    ray.deaf, ray.wait = True, slowly  # type: ignore[method-assign]
    ray.resources = {"CPU": 8.0}
    monkeypatch.setattr(time, "monotonic", lambda: now)
    plan = plan_of(tmp_path, "seed=0,1")
    outcome = on_ray(plan, tmp_path / "out", CtrlC())
    assert outcome.counts == {"planned": 2}
    runs = [cell.run for cell in plan.cells]
    assert ray.heard[-4:-1] == [("ring",), *(("cancel", run, True) for run in runs)]
    assert 60 <= waits <= 62


def test_parts_limits_and_a_begun_run_travel_with_the_cell(
    tmp_path: Path, ray: FakeRay, threads: list[int]
) -> None:
    """The run goes on where it stopped, with a file of limits that this machine alone has."""
    limits = tmp_path / "limits.yaml"
    limits.write_text("stalled: {steps: 1, gain: 1.0, recent: 1.0}\n")
    grid = ["seed=0"]
    config = write_config(tmp_path)
    config.write_text(config.read_text() + "rules: limits.yaml\n")
    [cell] = plan_sweep(config, ["train.steps=60"], grid).cells
    runs = SweepDir(tmp_path / "out").runs
    runs.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        execute(cell.config, runs, observer=StopAt(40))
    run = RunDir(runs / cell.run)
    assert run.checkpoint.exists()
    begun = (run.path / "steps.csv").read_text().splitlines()
    outcome = on_ray(plan_sweep(config, ["train.steps=60"], grid), tmp_path / "out")
    assert outcome.counts == {"finished": 1}
    [(name, content, imports, rules, archive, cpus)] = ray.calls
    assert (name, cpus, content["seed"]) == (cell.run, 1, 0)
    assert imports == {"parts.py": (tmp_path / "parts.py").read_bytes()}
    assert rules == limits.read_bytes()
    assert archive is not None
    after = (run.path / "steps.csv").read_text().splitlines()
    assert after[:21] == begun[:21]  # its times too
    assert len(after) == 61
    assert run.rules.read_bytes() == limits.read_bytes()
    assert threads == [1]


@pytest.fixture
def task(tmp_path: Path, ray: FakeRay) -> Callable[..., bytes]:
    [cell] = plan_of(tmp_path, "seed=0", overrides=("train.steps=40",)).cells
    imports = {"parts.py": (tmp_path / "parts.py").read_bytes()}

    def carry_out(**settings: Any) -> bytes:
        content = cell.config.model_dump(mode="json")
        content["data"] |= settings
        return carry_out_elsewhere([ray.bell], cell.run, content, imports, None, None, 1)

    return carry_out


def test_a_task_that_leaves_nothing_says_why(task: Callable[..., bytes]) -> None:
    with pytest.raises(RunError, match="batch_size"):
        task(batch_size=0)


@pytest.mark.parametrize("at", [None, 20, "end"])
def test_a_stopped_task_brings_what_is_worth_going_on_from(
    at: int | str | None,
    tmp_path: Path,
    task: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkpoint, or the run that had just ended."""

    def interrupted(config: Any, runs: Path, **_: Any) -> None:
        if at is not None:
            execute(config, runs, observer=StopAt(20) if at == 20 else None)
        raise KeyboardInterrupt

    monkeypatch.setattr("gradexp.sweeps.work.execute", interrupted)
    archive = task()
    if at is None:
        assert archive == b""
        return
    unpack(archive, tmp_path / "home")
    run = RunDir(tmp_path / "home")
    assert run.status() == ("running" if at == 20 else "finished")
    assert run.checkpoint.exists() == (at == 20)


def work_for(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.001)


def test_the_bell_is_a_ctrl_c(ray: FakeRay) -> None:
    with interrupted_by(ray.bell):
        work_for(0.1)
    ray.rung = True
    with pytest.raises(KeyboardInterrupt), interrupted_by(ray.bell):
        work_for(60)
    ray.rung = False
    with interrupted_by(ray.bell):
        work_for(0.1)
    ray.rung = True
    work_for(0.1)  # nobody listens any more


def test_a_bell_that_is_lost_has_not_rung(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: Any) -> None:
        raise RayError

    monkeypatch.setattr(ray, "get", lost)
    ray.rung = True
    with interrupted_by(ray.bell):
        work_for(0.1)


@pytest.mark.parametrize("first", ["ring", "heard"])
def test_who_asks_before_and_who_asks_after_hears_the_bell(first: str) -> None:
    async def both() -> None:
        bell = Bell()
        if first == "ring":
            await bell.ring()
            await bell.heard()
            return
        listening = asyncio.ensure_future(bell.heard())
        await asyncio.sleep(0.01)
        assert not listening.done()
        await bell.ring()
        await listening

    asyncio.run(asyncio.wait_for(both(), 60))


def test_an_archive_takes_the_place_of_what_the_run_had_written(tmp_path: Path) -> None:
    there, new = RunDir(tmp_path / "runs" / "run"), RunDir(tmp_path / "new")
    for run, status in [(there, "old"), (new, "fresh")]:
        run.make()
        run.write_manifest({"status": status})
    there.checkpoint.write_text("old")
    (there.path / "notes.txt").write_text("mine")
    (new.path / "parts.py").write_text("fresh")
    unpack(packed(new.path), there.path)
    names = ["manifest.json", "notes.txt", "parts.py"]
    assert sorted(path.name for path in there.path.iterdir()) == names
    assert there.status() == "fresh"
    assert list(there.path.parent.iterdir()) == [there.path]
    unpack(packed(new.path), there.path.with_name("another"))
    (tmp_path / "nowhere").write_text("")
    with pytest.raises(RunError, match=r"nowhere.run: cannot be written: "):
        unpack(packed(new.path), tmp_path / "nowhere" / "run")


def test_an_archive_puts_nothing_outside_its_place(tmp_path: Path) -> None:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../escaped", "x")
        archive.writestr(str(tmp_path / "absolute"), "x")
    unpack(buffer.getvalue(), tmp_path / "runs" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


def test_a_run_that_was_not_brought_home_whole_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, new = RunDir(tmp_path / "runs" / "run"), RunDir(tmp_path / "new")
    new.make()
    for name in ("a.csv", "manifest.json", "z.csv"):
        (new.path / name).write_text("{}")
    moved: list[str] = []
    replace = Path.replace

    def noted(path: Path, target: Path) -> Path:
        moved.append(path.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", noted)
    unpack(packed(new.path), there.path)
    assert sorted(moved) == ["a.csv", "manifest.json", "z.csv"]
    assert moved[-1] == "manifest.json"


def test_half_an_archive_of_a_killed_sweep_is_removed(tmp_path: Path, ray: FakeRay) -> None:
    runs = SweepDir(tmp_path / "out").runs
    (runs / ".tiny-1.incoming" / "deep").mkdir(parents=True)
    ray.answer = lambda _: left_by("finished")
    on_ray(plan_of(tmp_path), tmp_path / "out")
    assert not list(runs.glob(".*"))


def test_half_written_files_of_a_killed_sweep_are_removed_and_no_others(
    tmp_path: Path, ray: FakeRay
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("plan.csv", "runs.csv", "sweep.yaml", "rules.yaml", "notes.txt"):
        (out / f".{name}.12.tmp").write_text("half")
    ray.answer = lambda _: left_by("finished")
    on_ray(plan_of(tmp_path), out)
    assert [path.name for path in out.glob(".*.tmp")] == [".notes.txt.12.tmp"]


def test_a_sweep_whose_lock_is_a_link_is_refused(tmp_path: Path, ray: FakeRay) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "precious").write_text("x")
    (out / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match=r"out: cannot be written: Too many levels"):
        on_ray(plan_of(tmp_path), out)
    assert (tmp_path / "precious").read_text() == "x"
    assert ray.heard == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_where_nobody_answers_is_said_before_ray_tries(
    address: str, tmp_path: Path, ray: FakeRay
) -> None:
    with pytest.raises(ConfigError, match=f"--address {address}: no Ray cluster answers there: "):
        on_ray(plan_of(tmp_path), tmp_path / "out", address=address)
    assert ray.heard == []
