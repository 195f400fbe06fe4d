"""The directory of a run: who may work in it, what is copied into it, and what stays of it."""

from __future__ import annotations

import fcntl
from pathlib import Path

import numpy as np
import pytest

from gradexp.config import load_config
from gradexp.errors import RunError
from gradexp.imports import fingerprint
from gradexp.records import Column, RunDir, is_locked, lock_file
from gradexp.train import execute, run_dir
from tests.conftest import TINY, StopAt
from tests.nets import config_of

# --- one directory -------------------------------------------------------------------------------


def test_it_is_made_with_all_above_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a" / "b" / "net-0123")
    run.make()
    assert run.path.is_dir()
    run.make()  # it may be there
    assert run.name == "net-0123"


def test_a_folder_with_another_kind_of_manifest_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(RunError, match="is not a run directory"):
        RunDir.open(tmp_path)
    with pytest.raises(RunError, match="is not a run directory"):
        RunDir.open(tmp_path / "nowhere")


def test_what_was_not_written_yet_is_empty(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.read_summary() == {}
    assert run.status() is None
    assert not run.done()
    assert run.read("steps").empty
    assert run.empty_cells("steps", "loss").tolist() == []
    assert not run.in_use()
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_manifest({"status": "failed", "seconds": float("inf")})
    run.write_summary({"steps": 3})
    run.write_traceback("Traceback: größer\n")
    assert run.read_manifest() == {"status": "failed", "seconds": "inf"}
    assert run.status() == "failed"
    assert run.read_summary() == {"steps": 3}
    assert run.traceback.read_text(encoding="utf-8") == "Traceback: größer\n"


def test_a_writer_goes_on_with_columns_of_ones_own(tmp_path: Path) -> None:
    run, mine = RunDir(tmp_path), [Column("mine", "float", "a figure", optional=True)]
    row = {"step": 0, "layer_index": 1, "layer": "fc"}
    writer = run.writer("signal", added=mine)
    writer.append([{**row, "mine": 0.5, "pre_std": float("nan")}])
    offset = writer.offset
    writer.append([{**row, "mine": 9.0}])
    writer.close()
    writer = run.writer("signal", offset, mine)
    writer.append([{**row, "step": 4}])
    writer.close()
    frame = run.read("signal")
    assert frame["step"].tolist() == [0, 4]
    np.testing.assert_array_equal(frame["mine"], [0.5, np.nan])
    assert run.empty_cells("signal", "mine").tolist() == [False, True]
    assert run.empty_cells("signal", "pre_std").tolist() == [False, True]
    plain = RunDir(tmp_path / "plain")
    plain.make()
    writer = plain.writer("signal")
    with pytest.raises(RunError, match=r"signal\.csv: no column 'mine'"):
        writer.append([{**row, "mine": 0.5}])
    writer.close()


# --- locks ---------------------------------------------------------------------------------------


def test_a_lock_ends_with_the_work_however_that_ends(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "deep" / "run")
    with pytest.raises(ZeroDivisionError), run.locked():
        raise ZeroDivisionError
    assert not run.in_use()
    with run.locked():  # the file of the last one is no obstacle
        assert run.in_use()
        with pytest.raises(RunError, match="run: another process is working on this run"):
            run.locked().__enter__()
        assert run.in_use()


def test_onlookers_do_not_see_one_another(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_file(path, "taken"):
        pass
    with path.open() as onlooker:
        fcntl.flock(onlooker, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert not is_locked(path)


def test_a_lock_that_cannot_be_looked_at_counts_as_held(tmp_path: Path) -> None:
    assert is_locked(tmp_path)  # a folder
    assert not is_locked(tmp_path / "none")


# --- clearing ------------------------------------------------------------------------------------


def test_clearing_keeps_what_is_to_be_kept_here_and_only_here(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.make()
    for name in ("config.yaml", "rules.yaml", "steps.csv"):
        (run.path / name).write_text(name)
    run.clear([run.path.resolve() / "config.yaml", tmp_path / "rules.yaml"])
    assert [path.name for path in run.path.iterdir()] == ["config.yaml"]


def test_what_a_run_has_not_written_is_not_removed(tmp_path: Path) -> None:
    outcome = execute(config_of("train.steps=3"), tmp_path)
    run = outcome.run
    (run.path / "notes").mkdir()
    (run.path / "notes" / "why.txt").write_text("mine")
    for name in ("README.md", ".hidden.tmp", ".notes.txt.12.tmp"):
        (run.path / name).write_text("mine")
    before = {path.name for path in run.path.iterdir()}
    assert execute(config_of("train.steps=3"), tmp_path, fresh=True).resumed_from is None
    assert {path.name for path in run.path.iterdir()} == before
    run.clear()
    left = [run.lock.name, "notes", "README.md", ".hidden.tmp", ".notes.txt.12.tmp"]
    assert sorted(path.name for path in run.path.iterdir()) == sorted(left)


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.make()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("x")
    run.checkpoint.symlink_to(tmp_path / "data")
    run.summary.symlink_to(tmp_path / "data" / "precious")
    run.traceback.symlink_to(tmp_path / "nowhere")
    run.clear()
    assert list(run.path.iterdir()) == []
    assert (tmp_path / "data" / "precious").read_text() == "x"


def test_behind_a_link_nothing_is_removed(tmp_path: Path) -> None:
    config = config_of("train.steps=3")
    run = run_dir(config, tmp_path / "runs")
    run.path.parent.mkdir()
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.yaml").write_text("mine")
    run.path.symlink_to(tmp_path / "project")
    with pytest.raises(RunError, match="is a link, behind which nothing is removed"):
        execute(config, run.path.parent)
    assert (tmp_path / "project" / "config.yaml").read_text() == "mine"


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    config = config_of("train.steps=3")
    run = run_dir(config, tmp_path / "runs")
    run.path.mkdir(parents=True)
    (tmp_path / "precious").write_text("x")
    run.lock.symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match=r"cannot be written: Too many levels of symbolic links"):
        execute(config, run.path.parent)
    assert (tmp_path / "precious").read_text() == "x"


# --- what a run puts there -----------------------------------------------------------------------

PARTS = "# of a user's own\n"
LIMITS = "diverged: {ratio: 3}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A config that needs two more files."""
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "limits.yaml").write_text(LIMITS)
    (tmp_path / "own.yaml").write_text(TINY + "imports: [parts.py]\nrules: limits.yaml\n")
    return tmp_path


def test_what_a_run_needs_lies_beside_its_config(folder: Path) -> None:
    config = load_config(folder / "own.yaml")
    run = execute(config, folder / "runs").run
    assert run.path == run_dir(config, folder / "runs").path
    assert (run.path / "parts.py").read_text() == PARTS
    assert run.rules.read_text() == LIMITS
    manifest = run.read_manifest()
    assert manifest["imports"] == {"parts.py": fingerprint(folder / "parts.py")}
    assert run.name == f"tiny-{manifest['id']}"
    assert [path.name for path in run.path.iterdir() if path.name.endswith((".tmp", ".pt"))] == []
    again = load_config(run.config)
    assert run_dir(again, folder / "runs").path == run.path
    assert [Path(path) for path in again.imports] == [run.path / "parts.py"]


def content(run: RunDir) -> dict[str, bytes]:
    """Of all that must not depend on the config's place."""
    names = ("config.yaml", "parts.py", "rules.yaml", "gradients.csv", "signal.csv", "units.csv")
    return {name: (run.path / name).read_bytes() for name in names}


@pytest.mark.parametrize("began", ["finished", "interrupted", "killed"])
def test_the_config_in_a_run_directory_repeats_the_run_in_place(folder: Path, began: str) -> None:
    """It names the copies beside it: a fresh start must not clear them away."""
    config = load_config(folder / "own.yaml")
    whole = execute(config, folder / "whole").run
    if began == "finished":
        run = execute(config, folder / "runs").run
    else:
        with pytest.raises(KeyboardInterrupt):
            execute(config, folder / "runs", observer=StopAt(5))
        run = run_dir(config, folder / "runs")
    if began == "killed":  # before its first checkpoint
        run.checkpoint.unlink()
    outcome = execute(load_config(run.config), folder / "runs", fresh=began == "finished")
    assert not outcome.already_done
    assert (outcome.resumed_from is not None) == (began == "interrupted")
    assert outcome.run.path == run.path
    assert outcome.run.status() == "finished"
    assert content(outcome.run) == content(whole)


def test_a_fresh_start_leaves_nothing_of_the_earlier_run(folder: Path) -> None:
    config = load_config(folder / "own.yaml")
    run = execute(config, folder / "runs").run
    (run.path / "traceback.txt").write_text("of an earlier attempt")
    (run.path / ".steps.csv.1.tmp").write_text("half")
    before = content(run)
    outcome = execute(config, folder / "runs", fresh=True)
    assert content(outcome.run) == before
    assert not (run.path / "traceback.txt").exists()
    assert not list(run.path.glob(".*.tmp"))


def test_a_run_in_use_stays_untouched(folder: Path) -> None:
    config = load_config(folder / "own.yaml")
    run = execute(config, folder / "runs").run
    before = content(run)
    with run.locked(), pytest.raises(RunError, match="another process"):
        execute(config, folder / "runs", fresh=True)
    assert content(run) == before
