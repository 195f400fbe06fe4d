"""Sweeps in local processes: failures stay with their cell, damage mends, nothing done is lost."""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from gradexp.cli.sweeping import show_status
from gradexp.errors import RunError
from gradexp.records import RunDir
from gradexp.sweeps import (
    SweepOptions,
    SweepOutcome,
    plan_sweep,
    run_sweep,
    status,
    status_table,
    summary_line,
    sweep_view,
)
from gradexp.sweeps.local import SECONDS_TO_STOP
from tests.conftest import Begin
from tests.forking import fork_instead
from tests.sweeps import PATIENCE, repeatable, rows, states, wait_until, workers_of, write_config

pytestmark = pytest.mark.usefixtures("forks")

DEPTHS = "model.depth=2,3"


def _sweep(folder: Path, *grid: str, **options: object) -> SweepOutcome:
    config = folder / "tiny.yaml"
    if not config.exists():
        write_config(folder)
    options = {"workers": 1, **options}
    return run_sweep(plan_sweep(config, [], grid), folder / "out", SweepOptions(**options))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and a finished sweep of four cells, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        fork_instead(patch)
        assert _sweep(folder, DEPTHS, "seed=0,1").exit_code == 0
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_what_is_done_is_not_done_again_and_a_changed_grid_adds(copied: Path) -> None:
    before = repeatable(copied / "out")
    outcome = _sweep(copied, DEPTHS, "seed=0,1")
    assert (outcome.already_done, outcome.counts) == (4, {"finished": 4})
    outcome = _sweep(copied, DEPTHS, "model.activation=elu", "seed=0")
    assert (outcome.already_done, outcome.counts) == (0, {"finished": 2})
    table = rows(copied / "out" / "runs.csv")
    assert [row["status"] for row in table] == ["finished"] * 6
    assert [row["model.activation"] for row in table] == ["elu"] * 2 + [""] * 4
    after = repeatable(copied / "out")
    assert {name: after[name] for name in before if "/" in name} == {
        name: content for name, content in before.items() if "/" in name
    }


def test_damaged_files_mend_themselves(copied: Path) -> None:
    """A summary, a manifest, and the tables of the sweep itself, each cut in half."""
    out, expected = copied / "out", repeatable(copied / "out")
    first, second, *_ = (out / "runs" / row["run"] for row in rows(out / "plan.csv"))
    for path in (first / "summary.json", second / "manifest.json", out / "runs.csv"):
        _cut_in_half(path)
    (out / "plan.csv").write_text((out / "plan.csv").read_text()[:-15])
    assert status(out).counts["interrupted"] == 2
    outcome = _sweep(copied, DEPTHS, "seed=0,1")
    assert (outcome.already_done, outcome.exit_code) == (2, 0)
    assert repeatable(out) == expected


@pytest.mark.parametrize("damaged", ["checkpoint.pt", "steps.csv"])
def test_an_interrupted_cell_with_damaged_files_is_finished(
    copied: Path, damaged: str, begin: Begin
) -> None:
    out = copied / "out"
    many = ["train.steps=1500"]
    process = begin(copied / "tiny.yaml", out, *many, workers=1)
    wait_until(lambda: list(out.glob("runs/*/checkpoint.pt")), process)
    for pid in [*workers_of(process), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    _cut_in_half(next(out.glob("runs/*/checkpoint.pt")).parent / damaged)
    outcome = _sweep(copied, *many)
    assert outcome.counts == {"finished": 1}
    run = next(path.parent for path in out.glob("runs/*/summary.json") if _steps(path) == 1500)
    assert RunDir(run).read("steps")["step"].tolist() == list(range(1500))


def _steps(summary: Path) -> int:
    return int(RunDir(summary.parent).read_summary()["steps"])


def _cut_in_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_failing_cell_stops_no_other_and_runs_again_only_when_asked(tmp_path: Path) -> None:
    modes = "data.mode=error,memory,killed,fine"
    outcome = _sweep(tmp_path, modes)
    assert outcome.exit_code == 1
    assert states(tmp_path / "out") == ["failed"] * 3 + ["finished"]
    errors = [row["error"] for row in rows(tmp_path / "out" / "runs.csv")]
    assert errors[0] == "ValueError: this cell is meant to fail"
    assert "the worker ran out of memory, 2 times" in errors[1]
    assert "the worker was killed by signal 9, 2 times" in errors[2]
    traceback = tmp_path / "out" / "runs" / next(iter(outcome.failures)) / "traceback.txt"
    assert "this cell is meant to fail" in traceback.read_text()

    again = _sweep(tmp_path, modes)
    assert (again.already_done, again.exit_code) == (4, 1)
    console = Console(width=200, file=io.StringIO())
    console.print(status_table(status(tmp_path / "out")))
    assert "ValueError: this cell is meant to fail" in console.file.getvalue()


def test_failed_cells_run_again_with_retry_failed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    grid = ("data.mode=fine,killed_once", f"data.marker={marker}")
    assert _sweep(tmp_path, *grid).counts == {"finished": 2}
    record = RunDir(tmp_path / "out" / "runs" / rows(tmp_path / "out" / "plan.csv")[0]["run"])
    record.write_manifest({**record.read_manifest(), "status": "failed", "error": "made up"})
    assert _sweep(tmp_path, *grid).counts == {"finished": 1, "failed": 1}
    assert _sweep(tmp_path, *grid, retry_failed=True).counts == {"finished": 2}


def test_fail_fast_stops_after_the_first_failure(tmp_path: Path) -> None:
    outcome = _sweep(tmp_path, "data.mode=error,fine", "seed=0,1,2,3", fail_fast=True)
    assert outcome.exit_code == 1
    assert outcome.counts["failed"] == 1
    assert outcome.counts["planned"] >= 6


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    outcome = _sweep(tmp_path, "train.optimizer.lr=1e30")
    assert (outcome.counts, outcome.exit_code) == ({"diverged": 1}, 0)
    assert _sweep(tmp_path, "train.optimizer.lr=1e30").already_done == 1


def _at_work(out: Path, runs: int) -> bool:
    """So many unfinished runs have written some steps."""
    tables = [path for path in out.glob("runs/*/steps.csv") if path.stat().st_size > 1000]
    return sum(not (path.parent / "summary.json").exists() for path in tables) >= runs


def test_ctrl_c_keeps_checkpoints_and_the_same_command_goes_on(copied: Path, begin: Begin) -> None:
    """Both cells begin to train at the same moment, and none ends before it is interrupted."""
    config, out = copied / "tiny.yaml", copied / "out"
    together = ("data.mode=together", f"data.marker={copied / 'meeting'}")
    hold = copied / "hold"
    hold.touch()
    patient = f"train.schedule={{name: patient, marker: {hold}}}"
    grid = ("train.steps=1500", "probe.every=500", "seed=0,1", patient, *together)
    process = begin(config, out, *grid, checkpoint_seconds=1000.0)
    wait_until(lambda: _at_work(out, 2), process)
    assert status(out).live
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert states(out)[:2] == ["interrupted"] * 2
    assert len(list(out.glob("runs/*/checkpoint.pt"))) == 2
    assert "The same sweep command goes on." in summary_line(status(out))
    hold.unlink()
    outcome = _sweep(copied, *grid)
    assert outcome.counts == {"finished": 2}


def _interrupt_waits_at(pid: int) -> bool:
    """Whether a stopped process has a SIGINT that it has not heard yet."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pending = next(line for line in lines if line.startswith("ShdPnd"))
    return bool(int(pending.split()[1], 16) >> (signal.SIGINT - 1) & 1)


def test_a_second_ctrl_c_ends_at_once(copied: Path, begin: Begin) -> None:
    config, out = copied / "tiny.yaml", copied / "out"
    process = begin(config, out, "train.steps=100000")
    wait_until(lambda: _at_work(out, 1), process)
    workers = workers_of(process)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: all(map(_interrupt_waits_at, workers)), process)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert time.monotonic() - asked < SECONDS_TO_STOP
    assert process.returncode != 0
    assert workers
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_watching_ends_when_the_sweep_does(
    copied: Path, capsys: pytest.CaptureFixture[str], begin: Begin
) -> None:
    config, out = copied / "tiny.yaml", copied / "out"
    process = begin(config, out, "train.steps=2000", "probe.every=500")
    wait_until(lambda: _at_work(out, 1), process)
    show_status(out, None, watch=True)
    assert "5 cells: 5 finished." in capsys.readouterr().out
    assert process.wait(PATIENCE) == 0


def test_a_second_sweep_on_the_directory_is_refused(copied: Path, begin: Begin) -> None:
    process = begin(copied / "tiny.yaml", copied / "out", "train.steps=100000")
    wait_until(lambda: _at_work(copied / "out", 1), process)
    with pytest.raises(RunError, match="another sweep is working here"):
        _sweep(copied, DEPTHS)


def test_a_directory_that_cannot_be_written_is_said_clearly(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RunError, match=r"out: cannot be written"):
        _sweep(tmp_path, DEPTHS)


def test_a_full_disk_fails_cells_and_loses_nothing(copied: Path) -> None:
    """The limit on file sizes stands for a full disk; workers inherit it."""
    out, before = copied / "out", repeatable(copied / "out")
    grid = ("train.steps=300", "seed=0")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        outcome = _sweep(copied, *grid)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.exit_code == 1
    assert "cannot be written: File too large" in next(iter(outcome.failures.values()))
    assert _sweep(copied, *grid, retry_failed=True).counts == {"finished": 1}
    after = repeatable(out)
    assert before.items() <= {**after, **{k: before[k] for k in before if "/" not in k}}.items()


def test_without_a_terminal_progress_is_plain_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    plan = plan_sweep(config, [], ["data.mode=fine,error"])
    view = sweep_view(Console(file=sys.stdout))
    run_sweep(plan, tmp_path / "out", SweepOptions(workers=1), view)
    printed = capsys.readouterr().out
    assert "2 cells to run" in printed
    assert "failed tiny-" in printed
    assert "2/2 cells done" in printed
    assert "\x1b" not in printed
