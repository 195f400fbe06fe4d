"""gradexp in Python: the names it has, and what they give."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import gradexp
from gradexp.analysis import Verdict
from gradexp.errors import ConfigError, RunError
from gradexp.records import TABLES

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"dataset": "digits", "batch_size": 64},
    "model": {"family": "mlp", "depth": 2, "width": 6},
    "train": {"steps": 4},
    "probe": {"examples": 16},
}


def test_the_names_are_these_and_no_others() -> None:
    assert gradexp.__all__ == [
        "Run",
        "Sweep",
        "Watch",
        "__version__",
        "load",
        "run",
        "sweep",
        "watch",
    ]
    assert dir(gradexp) == sorted(gradexp.__all__)
    for name in ("load", "run", "sweep", "watch"):
        assert inspect.isfunction(getattr(gradexp, name)), name
        assert inspect.getdoc(getattr(gradexp, name))
    with pytest.raises(AttributeError, match="no attribute 'train_it'"):
        _ = gradexp.train_it


def test_the_functions_take_these_arguments() -> None:
    def names(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert names(gradexp.run) == ["config", "out", "fresh", "settings"]
    assert names(gradexp.load) == ["path"]
    assert names(gradexp.sweep) == [
        *("config", "grid", "seeds", "out", "workers", "engine", "address"),
        *("retry_failed", "fail_fast", "settings"),
    ]
    assert names(gradexp.watch)[:5] == ["model", "optimizer", "probe", "loss", "out"]


CHECK = """\
import sys, gradexp
assert not {"torch", "pandas", "pydantic"} & set(sys.modules), "import gradexp"
run = gradexp.load(sys.argv[1])
assert len(run.gradients) and run.verdicts and run.summary
assert "torch" not in sys.modules, "load"
import gradexp.sweeps, gradexp.watching
assert callable(gradexp.watch) and callable(gradexp.sweep)
"""


def test_importing_and_loading_are_light(tmp_path: Path) -> None:
    run = gradexp.run(TINY, out=tmp_path)
    subprocess.run([sys.executable, "-c", CHECK, str(run.path)], check=True)


def test_a_run_gives_frames_and_verdicts(tmp_path: Path) -> None:
    run = gradexp.run(TINY, out=tmp_path, seed=3, model={"depth": 3}, **{"train.steps": 5})
    assert run.path.parent == tmp_path
    assert run.status == "finished"
    assert (run.config["seed"], run.config["model"]["depth"]) == (3, 3)
    assert run.config["model"]["width"] == 6
    for table in TABLES:
        if table != "time":
            frame = getattr(run, table)
            pd.testing.assert_frame_equal(frame, run.directory.read(table))
    assert list(run.layers["layer"]) == ["hidden.1", "hidden.2", "hidden.3", "readout"]
    assert list(run.steps["step"]) == [0, 1, 2, 3, 4]
    assert run.summary["steps"] == 5
    assert all(isinstance(one, Verdict) for one in run.verdicts)
    assert [one.name for one in run.verdicts] == [one["name"] for one in run.summary["verdicts"]]
    assert str(run.diagnosis).splitlines()[0] == run.summary["reading"]
    assert repr(run) == f"<Run {run.path}: finished>"
    assert json.dumps(run.manifest)


def test_a_run_from_a_file_is_that_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY))
    first = gradexp.run(tmp_path / "tiny.yaml", out=tmp_path / "a")
    second = gradexp.run(TINY, out=tmp_path / "b")
    assert first.name == second.name
    assert first.directory.config.read_bytes() == second.directory.config.read_bytes()
    again = gradexp.run(str(tmp_path / "tiny.yaml"), out=tmp_path / "a")
    assert again.manifest == first.manifest
    fresh = gradexp.run(TINY, out=tmp_path / "a", fresh=True)
    assert fresh.manifest["started"] >= first.manifest["started"]


def test_a_sweep_is_a_table_and_its_runs(tmp_path: Path) -> None:
    swept = gradexp.sweep(
        TINY,
        grid={"model.activation": ["relu", "tanh"]},
        seeds=2,
        out=tmp_path / "grid",
        workers=1,
        train={"steps": 2},
    )
    assert len(swept) == 4
    table = swept.table.sort_values(["model.activation", "seed"])
    assert list(table["model.activation"]) == ["relu", "relu", "tanh", "tanh"]
    assert list(table["seed"]) == [0, 1, 0, 1]
    assert set(table["status"]) == {"finished"}
    assert set(table["steps"]) == {2}
    gradients = swept.frame("gradients")
    assert gradients.groupby("run").size().to_dict() == {one.name: 6 for one in swept.runs}
    assert set(swept.verdicts) == set(table["run"])
    assert swept[swept.runs[0].name] is swept.runs[0]
    again = gradexp.load(tmp_path / "grid")
    assert isinstance(again, gradexp.Sweep)
    pd.testing.assert_frame_equal(again.table, swept.table)
    assert repr(again) == f"<Sweep {tmp_path / 'grid'}: 4 runs>"
    with pytest.raises(KeyError, match="is no table"):
        swept.frame("gradient")
    with pytest.raises(KeyError, match="nobody"):
        _ = swept["nobody"]


def test_wrong_input_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.depth"):
        gradexp.run(TINY, out=tmp_path, model={"depth": 0})
    with pytest.raises(ConfigError, match=r"use `gradexp.sweep`"):
        gradexp.run({**TINY, "sweep": {"seeds": 2}}, out=tmp_path)
    with pytest.raises(ConfigError, match="no such directory"):
        gradexp.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no run directory"):
        gradexp.load(tmp_path / "empty")
    with pytest.raises(RunError, match="is not a run directory"):
        gradexp.Run(tmp_path / "empty")
