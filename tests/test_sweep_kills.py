"""A sweep that is killed at any moment goes on by the same command, to the same bytes."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gradexp.records import RunDir
from tests.conftest import Begin
from tests.forking import fork_instead
from tests.kill_points import Point, environment, killed
from tests.sweeps import PARTS, PATIENCE, end, repeatable, start, states, write_config

pytestmark = [pytest.mark.usefixtures("forks"), pytest.mark.xdist_group("kills")]

GRID = ("model.depth=2,3", "seed=0,1,2,3,4", "train.steps=60")
CELLS = 10
WATCHED = "from tests.kill_points import install\n\ninstall()\n"

# Files of the sweep, each when it is first written and when it is there already.
OF_THE_SWEEP = [
    Point("fsync", "sweep.yaml"),
    Point("replace", "sweep.yaml"),
    Point("fsync", ".plan.csv"),
    Point("replace", "plan.csv"),
    Point("replace", "plan.csv"),
    Point("fsync", ".runs.csv"),
    Point("replace", "runs.csv"),
    Point("fsync", ".runs.csv", 2),
    Point("replace", "runs.csv", 2),
]
# Files of a run, from its first to its last.
OF_A_RUN = [
    Point("fsync", "config.yaml"),
    Point("replace", "manifest.json"),
    Point("fsync", "steps.csv"),
    Point("fsync", "checkpoint.pt"),
    Point("replace", "checkpoint.pt", 2),
    Point("fsync", "gradients.csv", 3),
    Point("replace", "summary.json"),
    Point("fsync", "summary.json", 2),
    Point("replace", "manifest.json", 2),
]


def _written(out: Path) -> Path:
    """A config whose parts let a process die where the environment says."""
    out.mkdir(exist_ok=True)
    config = write_config(out)
    (out / "parts.py").write_text(WATCHED + PARTS)
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _written(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def expected(config: Path) -> dict[str, object]:
    """What a sweep leaves that nobody disturbs."""
    out = config.parent / "undisturbed"
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as ends:
        fork_instead(patch)

        def begin(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
            process = start(*arguments, **options)
            ends.callback(end, process)
            return process

        _finish(begin, config, out)
    return repeatable(out)


def _finish(begin: Begin, config: Path, out: Path, **records: str) -> str:
    process = begin(config, out, *GRID, workers=1, checkpoint_seconds=0.0, **records)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert states(out) == ["finished"] * CELLS
    return str(errors)


def _ended(out: Path) -> dict[str, int]:
    """When each finished run was finished: one that is run again would have another time."""
    return {
        path.parent.name: path.stat().st_mtime_ns
        for path in out.glob("runs/*/manifest.json")
        if RunDir(path.parent).done()
    }


def _nothing_is_torn(out: Path) -> None:
    """Whatever has its name is whole, except the end of a table that is appended to."""
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
    for path in (out / "plan.csv", out / "runs.csv", out / "sweep.yaml"):
        assert not path.exists() or path.read_text().endswith("\n")


def _is_temporary(record: dict[str, str]) -> bool:
    return record["written"].startswith(".") and record["written"].endswith(".tmp")


@pytest.mark.parametrize(
    "points",
    [OF_THE_SWEEP, [Point(p.event, p.file, p.occurrence, "both") for p in OF_A_RUN]],
    ids=["while it writes its own files", "while a worker writes, with the worker"],
)
def test_the_same_command_goes_on_after_a_kill(
    points: list[Point], config: Path, expected: dict[str, object], begin: Begin, tmp_path: Path
) -> None:
    out, records = tmp_path / "out", tmp_path / "records"
    finished: dict[str, int] = {}
    for number in range(len(points)):
        moments = environment(points[: number + 1], records)
        process = begin(config, out, *GRID, workers=1, checkpoint_seconds=0.0, **moments)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGKILL, f"{points[number]} never came: {errors}"
        _nothing_is_torn(out)
        assert finished.items() <= _ended(out).items()
        finished = _ended(out)
    records_left = killed(records)
    assert [record["point"] for record in records_left] == list(map(str, points))
    assert all(map(_is_temporary, (r for r in records_left if r["target"] not in TABLES_WRITTEN)))
    _finish(begin, config, out)
    assert finished.items() <= _ended(out).items()
    assert repeatable(out) == expected


TABLES_WRITTEN = ("steps.csv", "gradients.csv")


def test_a_killed_worker_costs_its_cell_one_retry(
    config: Path, expected: dict[str, object], begin: Begin, tmp_path: Path
) -> None:
    """One sweep, in which a worker dies at every moment, each time in another cell."""
    out, records = tmp_path / "out", tmp_path / "records"
    errors = _finish(begin, config, out, **environment(OF_A_RUN, records))
    hits = killed(records)
    assert [hit["point"] for hit in hits] == list(map(str, OF_A_RUN))
    assert len({hit["folder"] for hit in hits}) == len(OF_A_RUN)
    lost = [line.split()[1] for line in errors.splitlines() if line.startswith("retry ")]
    assert lost == [Path(hit["folder"]).name for hit in hits]
    assert errors.count("the worker was killed by signal 9") == len(OF_A_RUN)
    assert repeatable(out) == expected
