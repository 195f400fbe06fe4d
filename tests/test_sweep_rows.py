"""`runs.csv`, `plan.csv` and `gradexp status`: every state, figure and word, of files made here."""

from __future__ import annotations

import io
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from gradexp.errors import RunError
from gradexp.records import RunDir
from gradexp.sweeps import (
    Plan,
    SweepStatus,
    plan_sweep,
    plan_table,
    preview,
    status,
    status_table,
    summary_line,
    table,
)
from gradexp.sweeps.directory import SweepDir, csv_text, merged, read_csv
from gradexp.sweeps.estimate import Estimate
from gradexp.sweeps.table import RunTable, mean_seconds, pending_of, result_of
from tests.fabricated_runs import LOST, Fabricated
from tests.sweeps import rows

BASE = """
name: tiny
data: {dataset: digits}
model: {family: mlp, depth: 3, width: 8}
train: {steps: 5}
"""
SUMMARY = {
    "steps": 50,
    "epochs": 2,
    "train_loss": 0.25,
    "train_accuracy": 0.75,
    "test_loss": "nan",
    "test_accuracy": 0.5,
    "units": 30,
    "dead_units": 4,
    "verdicts": [{"name": "dying", "level": "critical"}, {"name": "vanishing", "level": "note"}],
    "probe_examples": 64,
}
FINISHED = {
    "status": "finished",
    "steps": "50",
    "epochs": "2",
    "train_loss": "0.25",
    "train_accuracy": "0.75",
    "test_loss": "nan",
    "test_accuracy": "0.5",
    "units": "30",
    "dead_units": "4",
    "verdict": "dying",
    "verdicts": "dying vanishing",
    "seconds": "12.5",
}


def plan_of(folder: Path, *grid: str, text: str = BASE) -> Plan:
    (folder / "tiny.yaml").write_text(text)
    return plan_sweep(folder / "tiny.yaml", [], grid)


def leave(
    run: RunDir, status: str, summary: dict[str, Any] | None = None, **manifest: Any
) -> RunDir:
    """What a run leaves that came so far."""
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_manifest({"status": status, **manifest})
    if summary is not None:
        run.write_summary(summary)
    return run


def printed(what: RenderableType, width: int = 200) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(what)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_run_that_is_done_tells_its_figures_and_the_sickest_verdict(tmp_path: Path) -> None:
    run = leave(RunDir(tmp_path / "run"), "finished", SUMMARY, seconds=12.5, error=None)
    assert result_of(run) == FINISHED
    leave(run, "diverged", {"steps": 7, "dead_units": None}, seconds=None)
    empty = {**dict.fromkeys(FINISHED, ""), "status": "diverged", "steps": "7"}
    assert result_of(run) == empty


@pytest.mark.parametrize(
    ("status", "summary", "manifest", "expected"),
    [
        ("failed", None, {"error": "no"}, {"status": "failed", "error": "no", "seconds": ""}),
        ("failed", SUMMARY, {"seconds": 3.0}, {"status": "failed", "error": "", "seconds": "3.0"}),
        ("running", None, {}, {"status": "interrupted"}),
        ("running", SUMMARY, {}, {"status": "interrupted"}),
        ("finished", None, {}, {"status": "interrupted"}),
        ("finished", {}, {}, {"status": "interrupted"}),
    ],
)
def test_a_run_that_is_not_done_tells_how_far_it_came(
    status: str,
    summary: dict[str, Any] | None,
    manifest: dict[str, Any],
    expected: dict[str, str],
    tmp_path: Path,
) -> None:
    assert result_of(leave(RunDir(tmp_path / "run"), status, summary, **manifest)) == expected


def test_runs_without_a_readable_manifest(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert result_of(run) == {"status": "planned"}
    run.path.mkdir()
    assert result_of(run) == {"status": "planned"}
    run.manifest.write_text('{"status": "fini')
    assert result_of(run) == {"status": "interrupted"}
    leave(run, "finished")
    run.summary.write_text('{"steps"')
    assert result_of(run) == {"status": "interrupted"}


def test_limits_of_ones_own_judge_again(tmp_path: Path) -> None:
    run = Fabricated(decay=0.9, **LOST).write(tmp_path / "run")
    run.write_summary({"verdicts": [{"name": "something"}]})
    limits = tmp_path / "limits.yaml"
    assert result_of(run)["verdict"] == "something"
    limits.write_text("vanishing: {decades: 4}\n")
    assert result_of(run, limits)["verdict"] == "vanishing"
    limits.write_text("vanishing: {decades: 40}\n")
    assert "vanishing" not in result_of(run, limits)["verdicts"]


ROWS = [
    {"run": "a", "status": "finished", "seconds": "10"},
    {"run": "b", "status": "diverged", "seconds": "40.0"},
    {"run": "c", "status": "finished", "seconds": ""},
    {"run": "d", "status": "finished"},
    {"run": "e", "status": "failed", "seconds": "1000"},
    {"run": "f", "status": "running", "seconds": "1000"},
    {"run": "g", "status": "planned"},
    {"run": "h", "status": "interrupted"},
]


def test_the_mean_time_is_that_of_runs_that_are_done() -> None:
    assert mean_seconds(ROWS) == 25.0
    assert math.isnan(mean_seconds(ROWS[2:]))


def test_what_is_still_to_be_carried_out() -> None:
    assert [row["run"] for row in pending_of(ROWS)] == ["f", "g", "h"]
    assert [row["run"] for row in pending_of(ROWS, retry_failed=True)] == ["e", "f", "g", "h"]


def sweep_of(folder: Path, *grid: str) -> tuple[SweepDir, Plan]:
    """A sweep that is planned on disk."""
    sweep, plan = SweepDir(folder / "out"), plan_of(folder, *grid)
    sweep.runs.mkdir(parents=True, exist_ok=True)
    sweep.write_plan(plan)
    return sweep, plan


def test_runs_csv_has_one_row_a_run_and_its_columns_in_order(tmp_path: Path) -> None:
    sweep, plan = sweep_of(tmp_path, "model.depth=2,3")
    first, second = plan.cells
    leave(sweep.run(second.run), "finished", SUMMARY, seconds=12.5)
    RunTable(sweep).stop()
    header = sweep.table.read_text().splitlines()[0]
    assert header == (
        "run,model.depth,seed,id,status,steps,epochs,train_loss,train_accuracy,"
        "test_loss,test_accuracy,units,dead_units,verdict,verdicts,error,seconds"
    )
    one, other = rows(sweep.table)
    assert {k: v for k, v in one.items() if v} == {**first.row(), "status": "planned"}
    assert {k: v for k, v in other.items() if v} == {**second.row(), **FINISHED}


def test_the_table_follows_its_runs(tmp_path: Path) -> None:
    sweep, plan = sweep_of(tmp_path, "model.depth=2,3,4,5")
    runs = [cell.run for cell in plan.cells]
    leave(sweep.run(runs[0]), "failed", error="old", seconds=3.0)
    found = RunTable(sweep)
    found.begin(runs[0])
    assert (found.rows[runs[0]]["error"], found.rows[runs[0]]["seconds"]) == ("", "")
    assert found.counts() == {"running": 1, "planned": 3}
    assert found.counts(runs[1:]) == {"planned": 3}
    leave(sweep.run(runs[0]), "finished", SUMMARY, seconds=12.5)
    found.end(runs[0], None)
    assert {k: v for k, v in found.rows[runs[0]].items() if v} == {
        **plan.cells[0].row(),
        **FINISHED,
    }
    found.end(runs[0], "it broke after its end")
    broken = {**FINISHED, "status": "failed", "error": "it broke after its end"}
    assert {k: v for k, v in found.rows[runs[0]].items() if v} == {**plan.cells[0].row(), **broken}
    found.end(runs[0], None)
    found.end(runs[1], "left nothing")  # as a worker that could write nothing
    assert found.status(runs[1]) == "failed"
    assert found.rows[runs[1]]["error"] == "left nothing"
    leave(sweep.run(runs[2]), "failed", error="what it says itself")
    found.end(runs[2], "what the worker says")
    assert found.rows[runs[2]]["error"] == "what it says itself"
    found.begin(runs[3])
    leave(sweep.run(runs[3]), "running")
    found.stop()
    assert [row["status"] for row in rows(sweep.table)] == [
        "finished",
        "failed",
        "failed",
        "interrupted",
    ]


def test_writing_the_table_takes_a_twentieth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it takes a second here, so it is written every 20 seconds, and at the end."""
    now, written = 100.0, []
    write = table.write_atomically

    def slowly(path: Path, content: bytes) -> None:
        nonlocal now
        now += 1.0
        written.append(now)
        write(path, content)

    monkeypatch.setattr(table, "write_atomically", slowly)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sweep, plan = sweep_of(tmp_path, "model.depth=2,3,4")
    found = RunTable(sweep)
    found.write_if_due()
    assert written == [101.0]
    now = 150.0
    found.write_if_due()  # nothing has changed
    assert written == [101.0]
    found.begin(plan.cells[0].run)
    assert written == [101.0, 151.0]
    now = 170.9
    found.begin(plan.cells[1].run)
    assert len(written) == 2
    now = 171.1
    found.write_if_due()
    assert len(written) == 3
    found.stop()
    assert len(written) == 4
    assert [row["status"] for row in rows(sweep.table)] == ["planned"] * 3


def test_rows_of_earlier_plans_stay_while_their_runs_do(tmp_path: Path) -> None:
    sweep, before = sweep_of(tmp_path, "model.depth=2,3,4", "model.norm=none")
    sweep.run(before.cells[0].run).path.mkdir()
    sweep.run(before.cells[2].run).path.mkdir()
    _, plan = sweep_of(tmp_path, "model.activation=elu,tanh", "model.depth=4", "model.norm=none")
    columns, kept = read_csv(sweep.plan)
    assert columns == ["model.activation", "model.depth", "model.norm", "seed", "id", "run"]
    assert kept[:2] == [cell.row() for cell in plan.cells]
    assert [row["run"] for row in kept[2:]] == [before.cells[0].run, before.cells[2].run]
    assert [row["model.activation"] for row in kept[2:]] == ["", ""]

    _, again = sweep_of(tmp_path, "model.depth=3,2")
    columns, kept = read_csv(sweep.plan)
    assert columns == ["model.depth", "model.activation", "model.norm", "seed", "id", "run"]
    assert [row["run"] for row in kept] == [
        *(cell.run for cell in again.cells),
        before.cells[2].run,
    ]
    assert [row["model.norm"] for row in kept] == ["", "", "none"]


def test_a_plan_and_rows_without_their_runs(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "model.depth=2")
    row = {**plan.cells[0].row(), "model.depth": "9"}
    assert merged(plan, [], [row, {**row, "run": "gone"}], tmp_path)[1] == [plan.cells[0].row()]


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("run,a\nx,1\ny,2\n", ["run", "a"], [{"run": "x", "a": "1"}, {"run": "y", "a": "2"}]),
        ("run,a\nx,1\ny,2", ["run", "a"], [{"run": "x", "a": "1"}]),
        ("run,a\nx,1,2\n,5\ny,3\n", ["run", "a"], [{"run": "y", "a": "3"}]),
        ("a,run\n1\n2,y\n", ["a", "run"], [{"a": "2", "run": "y"}]),
        ("run,a", [], []),
        ("", [], []),
    ],
)
def test_whole_rows_of_a_damaged_table_are_read(
    text: str, columns: list[str], expected: list[dict[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    assert read_csv(path) == (columns, expected)


def test_tables_that_are_not_there_or_are_none(tmp_path: Path) -> None:
    assert read_csv(tmp_path / "runs.csv") == ([], [])
    (tmp_path / "runs.csv").write_bytes(b"run\n\xff\n")
    with pytest.raises(RunError, match=r"runs\.csv: cannot be read: "):
        read_csv(tmp_path / "runs.csv")
    with pytest.raises(RunError, match=r"cannot be read: "):
        read_csv(tmp_path)
    assert csv_text(["run", "a"], [{"run": "x,y"}]) == 'run,a\n"x,y",\n'


def test_what_a_plan_needs_is_kept_with_it(tmp_path: Path) -> None:
    """Parts and limits are copied, and the written sweep is the one that was planned."""
    (tmp_path / "parts.py").write_text("# nothing\n")
    (tmp_path / "limits.yaml").write_text("vanishing: {decades: 4}\n")
    text = BASE + "imports: [parts.py]\nrules: limits.yaml\n"
    sweep = SweepDir(tmp_path / "out")
    sweep.runs.mkdir(parents=True)
    sweep.write_plan(plan_of(tmp_path, "model.depth=2,3", text=text))
    names = ["parts.py", "plan.csv", "rules.yaml", "runs", "sweep.yaml"]
    assert sorted(path.name for path in sweep.path.iterdir()) == names
    assert (sweep.path / "rules.yaml").read_text() == "vanishing: {decades: 4}\n"
    again = plan_sweep(sweep.path / "sweep.yaml")
    assert [cell.axes for cell in again.cells] == [{"model.depth": "2"}, {"model.depth": "3"}]
    sweep.write_plan(again)  # onto themselves
    assert (sweep.path / "parts.py").read_text() == "# nothing\n"


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a sweep directory \(no plan\.csv\)"):
        status(tmp_path)


GO_ON = "The same sweep command goes on."
GO_ON_FROM = f" of work left. {GO_ON}"
AT_WORK = "A sweep is at work."


def found(*states: str, live: bool = False, each: float | None = None) -> SweepStatus:
    """A sweep with runs `r0`, `r1`, ... in these states; done ones took `each` seconds."""
    made = [
        {
            "run": f"r{number}",
            "model.depth": str(number),
            "status": state,
            "error": f"wrong {number}" if state == "failed" else "",
            "verdict": "healthy" if state == "finished" else "",
            "seconds": "" if each is None else str(each),
        }
        for number, state in enumerate(states)
    ]
    return SweepStatus(Path("runs"), ["model.depth"], made, live)


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        (found("finished"), "1 cell: 1 finished."),
        (found("finished", "diverged"), "2 cells: 1 finished, 1 diverged."),
        (
            found("failed", "finished", "failed"),
            "3 cells: 1 finished, 2 failed. --retry-failed runs the failed cells again.",
        ),
        (
            found("failed", "planned", "interrupted", "running", "running", each=90.0),
            f"5 cells: 1 planned, 2 running, 1 interrupted, 1 failed. {GO_ON}",
        ),
        (
            found("finished", "planned", "planned", "interrupted", "failed", each=90.0),
            "5 cells: 2 planned, 1 interrupted, 1 finished, 1 failed; about 4 min 30 s"
            + GO_ON_FROM,
        ),
        (
            found("diverged", "running", "planned", each=1800.0, live=True),
            f"3 cells: 1 planned, 1 running, 1 diverged; about 1 h 0 min of work left. {AT_WORK}",
        ),
        (found("planned", live=True), "1 cell: 1 planned. A sweep is at work."),
        (found("finished", each=5.0), "1 cell: 1 finished."),
    ],
)
def test_the_words_of_a_state(seen: SweepStatus, line: str) -> None:
    assert summary_line(seen) == line


def test_the_whole_table_of_a_sweep(tmp_path: Path) -> None:
    seen = found("finished", "failed", "running", "failed")
    seen = SweepStatus(tmp_path, seen.axes, seen.rows, live=False)
    (tmp_path / "r3").mkdir()
    RunDir(tmp_path / "r3").write_traceback("Traceback")
    assert printed(status_table(seen)) == [
        "model.depth  status    verdict",
        "0            finished  healthy",
        "1            failed",
        "2            running",
        "3            failed",
        "",
        "failed r1: wrong 1",
        f"  {tmp_path / 'r1'}",
        "",
        "failed r3: wrong 3",
        f"  {tmp_path / 'r3' / 'traceback.txt'}",
        "",
        "4 cells: 1 running, 1 finished, 2 failed. The same sweep command goes on.",
    ]


@pytest.mark.parametrize(
    ("states", "most", "shown"),
    [
        (["finished"] * 4 + ["running"] * 2 + ["planned"] * 4, 4, [3, 4, 5, 6]),
        (["running"] + ["planned"] * 4, 2, [0, 1]),
        (["finished"] * 5, 2, [0, 1]),
        (["finished"] * 4 + ["running"], 3, [2, 3, 4]),
        (["finished"] * 2 + ["running"], 9, [0, 1, 2]),
        (["finished", "running", "planned"], 0, [0]),
    ],
)
def test_a_small_screen_shows_what_is_at_work(
    states: list[str], most: int, shown: list[int]
) -> None:
    _, *lines, _, _ = printed(status_table(found(*states), most))
    assert [int(line.split()[0]) for line in lines] == shown


def test_errors_are_left_out_of_a_small_screen() -> None:
    assert not any("wrong" in line for line in printed(status_table(found("failed"), 5)))


def test_the_state_of_a_sweep_on_disk(tmp_path: Path) -> None:
    sweep, plan = sweep_of(tmp_path, "model.depth=2,3")
    first, second = plan.cells
    leave(sweep.run(first.run), "finished", SUMMARY, seconds=12.5)
    seen = status(sweep.path)
    assert (seen.axes, seen.live, seen.runs) == (["model.depth", "seed"], False, sweep.runs)
    assert seen.counts == {"finished": 1, "planned": 1}
    assert [row["run"] for row in seen.rows] == [first.run, second.run]
    assert not sweep.table.exists()


def test_of_a_sweep_at_work_its_own_table_is_read(tmp_path: Path) -> None:
    """Only the sweep knows which runs are at work; limits are another question."""
    sweep, plan = sweep_of(tmp_path, "model.depth=2,3")
    limits = tmp_path / "limits.yaml"
    limits.write_text("vanishing: {decades: 4}\n")
    with sweep.locked():
        assert status(sweep.path).counts == {"planned": 2}  # it has not written it yet
        RunTable(sweep).begin(plan.cells[1].run)
        seen = status(sweep.path)
        assert seen.live
        assert [row["status"] for row in seen.rows] == ["planned", "running"]
        assert status(sweep.path, limits).counts == {"planned": 2}
    assert status(sweep.path).counts == {"planned": 2}


def test_a_run_by_itself_is_a_sweep_of_one_cell(tmp_path: Path) -> None:
    run = leave(RunDir(tmp_path / "mine"), "finished", SUMMARY, seconds=12.5)
    seen = status(run.path)
    assert (seen.axes, seen.runs, seen.live) == (["run"], tmp_path, False)
    assert seen.rows == [{"run": "mine", **FINISHED}]
    leave(run, "running")
    assert status(run.path).counts == {"interrupted": 1}
    with run.locked():
        seen = status(run.path)
    assert (seen.live, seen.counts) == (True, {"running": 1})


@pytest.mark.parametrize(("cells", "more"), [(200, []), (201, ["... and 1 more"])])
def test_a_dry_run_shows_the_first_200_cells(
    cells: int, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "estimate", lambda *_: Estimate(30.0, "thin air"))
    plan = plan_of(tmp_path, f"seed={','.join(map(str, range(cells)))}", "model.depth=2")
    leave(SweepDir(tmp_path / "out").run(plan.cells[1].run), "running")
    lines = printed(plan_table(plan, tmp_path / "out", 3))
    assert lines[0].split() == ["model.depth", "seed", "run", "status"]
    expected = [
        ["2", str(seed), cell.run, "interrupted" if seed == 1 else "planned"]
        for seed, cell in enumerate(plan.cells[:200])
    ]
    assert [line.split() for line in lines[1:201]] == expected
    last = f"{cells} cells, {cells} to run with 3 at a time; about 30 s, an estimate from thin air"
    assert lines[201:] == [*more, "", last]


def test_a_dry_run_of_a_sweep_that_is_done_estimates_nothing(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "model.depth=2,3")
    for cell in plan.cells:
        leave(SweepDir(tmp_path / "out").run(cell.run), "finished", SUMMARY)
    lines = printed(plan_table(plan, tmp_path / "out", 3))
    assert lines[-1] == "2 cells, 0 to run with 1 at a time"


def test_a_plan_in_a_folder_of_the_same_name_is_not_mistaken(tmp_path: Path) -> None:
    """A folder among the runs that no plan has is no row."""
    sweep, _ = sweep_of(tmp_path, "model.depth=2")
    leave(sweep.run("stranger"), "finished", SUMMARY)
    assert status(sweep.path).counts == {"planned": 1}
    assert json.loads(sweep.run("stranger").manifest.read_text())["status"] == "finished"
