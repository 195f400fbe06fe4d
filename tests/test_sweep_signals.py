"""How a sweep is stopped, refused, or given up, and what becomes of its workers and cells then."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gradexp.errors import RunError
from gradexp.sweeps import (
    Plan,
    SweepOptions,
    SweepOutcome,
    View,
    local,
    plan_sweep,
    run_sweep,
    running,
)
from gradexp.sweeps.directory import SweepDir
from gradexp.sweeps.events import Began, Ended, Event, Lost, StopRequest, Waiting
from gradexp.sweeps.local import LocalEngine
from tests.sweeps import rows, states, write_config

pytestmark = pytest.mark.usefixtures("unheard_signals_fail")

STOPPING = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_asks_and_the_second_interrupts(number: int) -> None:
    before = [signal.getsignal(each) for each in STOPPING]
    with StopRequest() as stop:
        assert (stop.requested, stop.by_signal) == (False, False)
        signal.raise_signal(number)
        assert stop.requested
        assert stop.by_signal
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert [signal.getsignal(each) for each in STOPPING] == before


def test_handlers_are_put_back_after_an_error_too() -> None:
    def mine(*_: Any) -> None:
        """One of somebody else's."""

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(ValueError, match="no"), StopRequest():
            raise ValueError("no")
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_stop_without_a_signal_is_not_an_interrupt() -> None:
    with StopRequest() as stop:
        stop.requested = True
        signal.raise_signal(signal.SIGTERM)  # the first signal, all the same
        assert stop.by_signal


def test_another_thread_leaves_the_handlers_alone() -> None:
    before = [signal.getsignal(each) for each in STOPPING]
    during = []

    def work() -> None:
        with StopRequest() as stop:
            during.append(not stop.requested)
            during.extend(signal.getsignal(each) for each in STOPPING)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert during == [True, *before]


class Script:
    """Stands for an engine that does what it is told, cell by cell."""

    def __init__(self, act: Callable[[Any, StopRequest], Iterator[Event]]) -> None:
        self._act = act
        self.sweep: SweepDir
        self.closed = False

    def __call__(self, sweep: SweepDir, *_: Any) -> Script:
        self.sweep = sweep
        return self

    def carry_out(self, cells: Sequence[Any], stop: StopRequest) -> Iterator[Event]:
        try:
            for cell in cells:
                if stop.requested:
                    return
                yield Began(cell, "1")
                yield from self._act(cell, stop)
        finally:
            self.closed = True

    def done(self, cell: Any) -> Ended:
        """A finished run."""
        run = self.sweep.run(cell.run)
        run.path.mkdir(exist_ok=True)
        run.write_manifest({"status": "finished"})
        run.write_summary({"steps": 1})
        return Ended(cell, "1")


class Followed(View):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def opened(self, cells: int) -> None:
        self.heard.append(f"opened {cells}")

    def told(self, event: Event, table: Any) -> None:
        state = table.status(event.cell.run) if isinstance(event, Began | Ended) else ""
        self.heard.append(f"{type(event).__name__} {state}".strip())

    def closed(self) -> None:
        self.heard.append("closed")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_sweep(write_config(tmp_path), [], ["seed=0,1,2"])


def carried_out(
    plan: Plan, out: Path, script: Script, patch: pytest.MonkeyPatch, **options: Any
) -> tuple[SweepOutcome, list[str]]:
    patch.setattr(running, "LocalEngine", script)
    view = Followed()
    return run_sweep(plan, out, SweepOptions(**options), view), view.heard


@pytest.mark.parametrize("number", STOPPING)
def test_a_sweep_that_is_asked_to_stop_is_interrupted(
    number: int, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(cell: Any, _: StopRequest) -> Iterator[Event]:
        yield Waiting()
        yield script.done(cell)
        signal.raise_signal(number)

    script = Script(act)
    outcome, heard = carried_out(plan, tmp_path / "out", script, monkeypatch)
    assert (outcome.interrupted, outcome.exit_code) == (True, 130)
    assert outcome.counts == {"finished": 1, "planned": 2}
    assert heard == ["opened 3", "Began running", "Waiting", "Ended finished", "closed"]
    assert states(tmp_path / "out") == ["finished", "planned", "planned"]


def test_a_signal_after_the_last_cell_interrupts_nothing(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(cell: Any, _: StopRequest) -> Iterator[Event]:
        yield script.done(cell)
        if cell == plan.cells[-1]:
            signal.raise_signal(signal.SIGTERM)

    script = Script(act)
    outcome, _ = carried_out(plan, tmp_path / "out", script, monkeypatch)
    assert (outcome.interrupted, outcome.exit_code, outcome.already_done) == (False, 0, 0)
    again, heard = carried_out(plan, tmp_path / "out", script, monkeypatch)
    assert (again.already_done, again.directory, heard) == (3, tmp_path / "out", [])


def test_a_second_signal_ends_all_and_leaves_the_table_true(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(cell: Any, _: StopRequest) -> Iterator[Event]:
        yield script.done(cell)
        yield Began(plan.cells[1], "2")
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    script = Script(act)
    view = Followed()
    monkeypatch.setattr(running, "LocalEngine", script)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan, tmp_path / "out", SweepOptions(), view)
    assert script.closed
    assert view.heard[-1] == "closed"
    assert states(tmp_path / "out") == ["finished", "planned", "planned"]


def test_fail_fast_stops_but_is_no_interrupt(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(cell: Any, _: StopRequest) -> Iterator[Event]:
        yield script.done(cell) if cell == plan.cells[0] else Ended(cell, "1", "no")

    script = Script(act)
    outcome, _ = carried_out(plan, tmp_path / "out", script, monkeypatch, fail_fast=True)
    assert (outcome.interrupted, outcome.exit_code) == (False, 1)
    assert outcome.counts == {"finished": 1, "failed": 1, "planned": 1}
    assert outcome.failures == {plan.cells[1].run: "no"}
    script = Script(act)
    outcome, _ = carried_out(plan, tmp_path / "on", script, monkeypatch)
    assert outcome.counts == {"finished": 1, "failed": 2}


def test_cells_that_are_left_are_carried_out_in_the_order_of_the_plan(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def act(cell: Any, _: StopRequest) -> Iterator[Event]:
        order.append(cell.run)
        yield script.done(cell)

    script = Script(act)
    sweep, (first, second, third) = SweepDir(tmp_path / "out"), plan.cells
    begun, failed = sweep.run(first.run), sweep.run(second.run)
    for run, status in [(begun, "running"), (failed, "failed")]:
        run.path.mkdir(parents=True)
        run.write_manifest({"status": status, "error": "old"})
    outcome, heard = carried_out(plan, sweep.path, script, monkeypatch)
    assert order == [first.run, third.run]
    assert (heard[0], outcome.already_done, outcome.exit_code) == ("opened 2", 1, 1)
    assert outcome.failures == {second.run: "old"}
    outcome, heard = carried_out(plan, sweep.path, script, monkeypatch, retry_failed=True)
    assert order[2:] == [second.run]
    assert (heard[0], outcome.already_done, outcome.exit_code) == ("opened 1", 2, 0)


@pytest.mark.usefixtures("forks")
def test_a_lost_cell_is_next_and_is_given_up_after_the_second_time(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    rows_of_the_grid = f"data.mode, data.marker=[killed_once,'{marker}'],[killed,''],[fine,'']"
    plan = plan_sweep(write_config(tmp_path), ["train.steps=0"], [rows_of_the_grid])
    place = {cell.run: number for number, cell in enumerate(plan.cells)}
    told: list[tuple[str, int]] = []
    reasons: list[str | None] = []
    sweep = SweepDir(tmp_path / "out")
    with sweep.locked() as lock, StopRequest() as stop:
        for event in LocalEngine(sweep, lock, 1, 1, 15.0).carry_out(plan.cells, stop):
            if isinstance(event, Began | Ended | Lost):
                told.append((type(event).__name__, place[event.cell.run]))
            if isinstance(event, Lost | Ended):
                reasons.append(event.reason if isinstance(event, Lost) else event.error)
    assert told == [
        ("Began", 0),
        ("Lost", 0),
        ("Began", 0),
        ("Ended", 0),
        ("Began", 1),
        ("Lost", 1),
        ("Began", 1),
        ("Ended", 1),
        ("Began", 2),
        ("Ended", 2),
    ]
    killed = "the worker was killed by signal 9"
    assert reasons == [killed, None, killed, f"RunError: {killed}, 2 times in this run", None]
    failed = sweep.run(plan.cells[1].run)
    known = failed.read_manifest()
    assert (known["status"], known["error"]) == ("failed", reasons[3])
    assert (known["name"], known["id"]) == ("tiny", plan.cells[1].id)


@pytest.mark.usefixtures("forks")
def test_a_worker_that_does_not_listen_is_killed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It will never say a word, so that it makes no difference how short the patience is."""
    monkeypatch.setattr(local, "SECONDS_TO_STOP", 0.3)
    plan = plan_sweep(write_config(tmp_path), [], ["data.mode=deaf"])
    started: list[int] = []

    class Stop(View):
        def told(self, event: Event, table: Any) -> None:
            del table
            if isinstance(event, Began):
                children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                started.extend(map(int, children))
                signal.raise_signal(signal.SIGTERM)

    outcome = run_sweep(plan, tmp_path / "out", SweepOptions(workers=1), Stop())
    assert (outcome.interrupted, outcome.exit_code) == (True, 130)
    assert started
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)


@pytest.mark.usefixtures("forks")
def test_a_worker_that_has_stopped_hurries_no_other(tmp_path: Path) -> None:
    marker, begun = tmp_path / "marker", tmp_path / "marker.begun"
    modes = f"data.mode, data.marker=[waits,''],[lingers,'{marker}']"
    plan = plan_sweep(write_config(tmp_path), [], [modes])

    class Stop(View):
        def told(self, event: Event, table: Any) -> None:
            del event, table
            if begun.exists():
                begun.unlink()
                signal.raise_signal(signal.SIGINT)

    assert run_sweep(plan, tmp_path / "out", SweepOptions(workers=2), Stop()).interrupted
    assert marker.exists()


@pytest.mark.parametrize(("workers", "starts"), [(1, 3), (2, 6)])
def test_workers_that_never_start_are_given_up(
    workers: int, starts: int, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[str]] = []
    popen = subprocess.Popen

    def counted(command: list[str], **options: Any) -> Any:
        begun.append(command)
        assert len(begun) < 20, "it never gives up"
        return popen(command, **options)

    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    monkeypatch.setattr(subprocess, "Popen", counted)
    with pytest.raises(RunError) as caught:
        run_sweep(plan, tmp_path / "out", SweepOptions(workers=workers))
    log = tmp_path / "out" / "workers.log"
    reason = "the worker ended with exit code 1"
    assert str(caught.value) == f"workers do not start ({reason}); see {log}"
    assert starts <= len(begun) < starts + workers
    assert [row["status"] for row in rows(tmp_path / "out" / "runs.csv")] == ["planned"] * 3


REFUSED = "another sweep is working here; wait for it, or choose another --out"


class Clock:
    """Time passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.at: dict[float, Callable[[], object]] = {}

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for moment in [moment for moment in self.at if moment <= self.now]:
            self.at.pop(moment)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def test_a_second_sweep_is_refused_at_once_and_told_why(
    plan: Plan, tmp_path: Path, clock: Clock
) -> None:
    out = tmp_path / "out"
    with SweepDir(out).locked(), pytest.raises(RunError) as caught:
        run_sweep(plan, out)
    assert str(caught.value) == f"{out}: {REFUSED}"
    assert clock.now == 0.0
    assert not (out / "plan.csv").exists()


def test_a_sweep_of_somebody_else_is_alive_too(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (os.getpid(), 0)
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    sweep = SweepDir(tmp_path / "out")
    with sweep.locked(), pytest.raises(RunError, match=REFUSED), sweep.locked():
        pass
    assert clock.now == 0.0


@pytest.fixture
def gone(tmp_path: Path) -> Iterator[tuple[SweepDir, Any]]:
    """A directory whose sweep was killed, while one of its workers still holds the lock."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    sweep = SweepDir(tmp_path / "out")
    sweep.runs.mkdir(parents=True)
    with sweep.lock.open("w") as held:
        held.write(str(ended.pid))
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        yield sweep, held


def test_the_workers_of_a_killed_sweep_are_waited_for(
    gone: tuple[SweepDir, Any], clock: Clock
) -> None:
    sweep, held = gone
    clock.at[15.0] = lambda: fcntl.flock(held, fcntl.LOCK_UN)
    with sweep.locked():
        assert sweep.lock.read_text() == str(os.getpid())
    assert 15.0 <= clock.now < 16.0


@pytest.mark.parametrize("written", [None, "", "nonsense"])
def test_they_are_not_waited_for_for_ever(
    written: str | None, gone: tuple[SweepDir, Any], clock: Clock
) -> None:
    sweep, _ = gone
    if written is not None:
        sweep.lock.write_text(written)
    with pytest.raises(RunError, match=REFUSED), sweep.locked():
        pass
    assert 20.0 <= clock.now < 21.0


def test_a_sweep_holds_its_directory_and_lets_go(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "a" / "out")
    with sweep.locked() as descriptor:
        assert os.fstat(descriptor).st_ino == sweep.lock.stat().st_ino
        assert sweep.lock.read_text() == str(os.getpid())
        assert sweep.runs.is_dir()
    with sweep.locked():
        assert sweep.lock.read_text() == str(os.getpid())


def test_a_place_that_cannot_be_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "out"
    with (
        pytest.raises(RunError, match=f"^{place}: cannot be written: Not a directory$"),
        SweepDir(place).locked(),
    ):
        pass
