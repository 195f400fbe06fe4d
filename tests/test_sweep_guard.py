"""A dry run writes nothing: the process that tries cells is refused every place but its folder."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypeAlias

import pytest
from rich.console import Console

from gradexp.sweeps import plan_sweep, plan_table
from tests.sweeps import write_config

pytestmark = pytest.mark.usefixtures("forks")

# In a process of its own: the guard stays until the process ends.
PROGRAM = """
import json
import os
import sys
from pathlib import Path

from gradexp.sweeps.trial import write_only_below

inside, outside = map(Path, sys.argv[1:])
os.chdir(inside)
write_only_below(inside)


def said(what):
    try:
        what()
    except PermissionError as error:
        return f"{error.strerror}: {error.filename}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def ways(folder):
    old, new = str(folder / "old"), str(folder / "new")
    create = os.O_WRONLY | os.O_CREAT
    return {
        "write": lambda: open(new + "1", "w").close(),
        "append": lambda: open(old, "a").close(),
        "change": lambda: open(old, "r+").close(),
        "exclusive": lambda: open(new + "2", "xb").close(),
        "descriptor": lambda: os.close(os.open(new + "3", create)),
        "both ways": lambda: os.close(os.open(old, os.O_RDWR)),
        "bytes": lambda: open(os.fsencode(new + "4"), "wb").close(),
        "touch": lambda: Path(new + "5").touch(),
        "folder": lambda: os.mkdir(new + "6"),
        "folders": lambda: os.makedirs(new + "7/a/b"),
        "replace": lambda: os.replace(inside / "moved", new + "8"),
        "rename": lambda: os.rename(inside / "renamed", new + "9"),
        "hard link": lambda: os.link(inside / "old", new + "10"),
        "link": lambda: os.symlink(inside / "old", new + "11"),
        "read": lambda: open(old).read(),
        "list": lambda: os.listdir(folder),
    }


crooked = {
    "up": lambda: open("../outside/new", "w"),
    "through a link": lambda: open("linked/new", "w"),
    "beside": lambda: open(str(inside) + "2", "w"),
    "null": lambda: open(os.devnull, "w").close(),
    "relative": lambda: open("beneath", "w").close(),
    "open already": lambda: open(os.dup(1), "w").close(),
}
print(json.dumps([
    {name: said(way) for name, way in kind.items()}
    for kind in (ways(inside), ways(outside), crooked)
]))
"""
READING = {"read", "list"}

Said: TypeAlias = dict[str, str]


@pytest.fixture
def said(tmp_path: Path) -> tuple[Said, Said, Said]:
    """What came of each way to write, inside, outside, and by crooked ways."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "old").write_text("text")
    for name in ("moved", "renamed"):
        (inside / name).write_text("text")
    (inside / "linked").symlink_to(outside)
    before = sorted(outside.iterdir())
    command = [sys.executable, "-c", PROGRAM, str(inside), str(outside)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sorted(outside.iterdir()) == before
    assert (outside / "old").read_text() == "text"
    within, without, crooked = json.loads(done.stdout)
    return within, without, crooked


def test_only_what_lies_below_the_folder_can_be_written(
    said: tuple[Said, Said, Said], tmp_path: Path
) -> None:
    within, without, crooked = said
    moved_out = {"replace", "rename"}  # inside these went before, so outside they come too late
    assert within == dict.fromkeys(within, "done")
    refused = {
        name for name, text in without.items() if text.startswith("a dry run writes nothing")
    }
    assert refused == without.keys() - READING
    assert moved_out < refused
    assert {without[name] for name in READING} == {"done"}
    assert without["write"] == f"a dry run writes nothing: {tmp_path / 'outside' / 'new1'}"
    place = f"a dry run writes nothing: {tmp_path}"
    assert crooked == {
        "up": f"{place}/outside/new",
        "through a link": f"{place}/outside/new",
        "beside": f"{place}/inside2",
        "null": "done",
        "relative": "done",
        "open already": "done",
    }


def _dry_run(config: Path, *grid: str) -> str:
    console = Console(width=400, file=io.StringIO())
    console.print(plan_table(plan_sweep(config, [], grid), config.parent / "out", 1))
    return str(console.file.getvalue()).splitlines()[-1]


def test_a_dry_run_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell is tried, within the folder for temporary files, and nothing stays there either."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    config = write_config(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    said = _dry_run(config, "model.depth=2")
    assert said.endswith("an estimate from the first steps of a cell, tried now")
    assert {path: path.stat().st_mtime_ns for path in before} | {scratch: 0} == before | {
        scratch: 0
    }
    assert sorted(tmp_path.rglob("*")) == sorted(before)


def test_a_part_that_writes_elsewhere_is_stopped(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    said = _dry_run(write_config(tmp_path), "data.mode=killed_once", f"data.marker={marker}")
    assert "1 cells, 1 to run with 1 at a time; no estimate of time: cell data.mode=killed_" in said
    assert f"PermissionError: [Errno 1] a dry run writes nothing: '{marker}'" in said
    assert not marker.exists()


def test_the_trial_reads_its_cells_and_writes_their_costs(tmp_path: Path) -> None:
    """As a program, with the threads that it is given."""
    witness = tmp_path / "cells" / "witness"
    witness.parent.mkdir()
    grid = ["data.mode=witness", f"data.marker={witness}", "train.steps=0"]
    cells = plan_sweep(write_config(tmp_path), [], grid).cells
    contents = [cell.config.model_dump(mode="json") for cell in cells]
    (witness.parent / "cells.json").write_text(json.dumps(contents))
    command = [sys.executable, "-m", "gradexp.sweeps.trial", str(witness.parent), "2"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert json.loads(witness.read_text())["threads"] == 2
    [cost] = json.loads((witness.parent / "costs.json").read_text())["costs"]
    assert (cost["step"], cost["per_epoch"]) == (0.0, 16)
    assert cost["start"] == pytest.approx(cost["spent"], rel=0.01)
