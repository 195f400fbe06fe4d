"""The last words of a run: its outcome, environment and time, and what is left of a failure."""

from __future__ import annotations

import json
import platform
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

import gradexp
from gradexp.errors import RunError
from gradexp.recorder import Life, environment
from gradexp.records import RunDir
from gradexp.train import Observer, execute, run_dir
from gradexp.train.learner import Learner
from tests.clocks import Clock
from tests.conftest import StopAt
from tests.nets import config_of, run_of

NET = ("model={family: mlp, depth: 2, width: 5}", "train={epochs: 2}")


# --- the manifest --------------------------------------------------------------------------------


def test_a_life_is_on_record_from_its_first_moment(tmp_path: Path, clock: Clock) -> None:
    run = RunDir(tmp_path)
    life = Life(run, {}, {"name": "net", "id": "0123"})
    begun = run.read_manifest()
    assert set(begun) == {"status", "name", "id", "started", "seconds"}
    assert (begun["status"], begun["name"], begun["seconds"]) == ("running", "net", 0.0)
    clock.now += 2.34567
    with life.on_record():
        life.manifest["status"] = "finished"
    ended = run.read_manifest()
    assert (ended["status"], ended["seconds"]) == ("finished", 2.346)
    assert ended["started"] == begun["started"]
    for name in ("started", "ended"):  # whole seconds, and where on earth
        moment = datetime.fromisoformat(ended[name])
        assert moment.microsecond == 0
        assert moment.utcoffset() is not None
        assert not moment.utcoffset()


def test_an_attempt_adds_its_time_to_those_before(tmp_path: Path, clock: Clock) -> None:
    earlier = {"started": "2001-02-03T04:05:06+00:00", "seconds": 10.5, "status": "failed"}
    run = RunDir(tmp_path)
    life = Life(run, earlier, {})
    assert run.read_manifest() == {**earlier, "status": "running"}
    clock.now += 1.25
    life.ended()
    assert run.read_manifest()["seconds"] == 11.75
    assert run.read_manifest()["started"] == earlier["started"]


@pytest.mark.parametrize(
    ("error", "traced"), [(RunError("the disk is full"), False), (ZeroDivisionError("oh"), True)]
)
def test_only_a_fault_of_the_program_is_traced(
    tmp_path: Path, error: Exception, *, traced: bool
) -> None:
    run = RunDir(tmp_path)
    life = Life(run, {}, {})
    with pytest.raises(type(error)), life.on_record():
        raise error
    manifest = run.read_manifest()
    assert manifest["status"] == "failed"
    assert manifest["error"] == f"{type(error).__name__}: {error}"
    assert "ended" in manifest
    assert run.traceback.exists() == traced
    if traced:
        text = run.traceback.read_text()
        assert text.startswith("Traceback (most recent call last):\n")
        assert text.endswith("ZeroDivisionError: oh\n")
        assert "raise error" in text


def test_ctrl_c_is_no_failure(tmp_path: Path) -> None:
    config = config_of(*NET)
    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path, observer=StopAt(5))
    run = run_dir(config, tmp_path)
    manifest = run.read_manifest()
    assert manifest["status"] == "running"
    assert "ended" in manifest
    assert "error" not in manifest
    assert not run.traceback.exists()


def test_a_failure_is_forgotten_when_the_run_comes_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(*NET)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "evaluate", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            execute(config, tmp_path)
    run = run_dir(config, tmp_path)
    assert run.status() == "failed"
    assert run.traceback.exists()
    execute(config, tmp_path)
    assert run.status() == "finished"
    assert "error" not in run.read_manifest()
    assert not run.traceback.exists()


def test_the_environment_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "a processor")
    found = environment(torch.device("cpu"))
    assert found == {
        "versions": {
            "gradexp": gradexp.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "device": {"type": "cpu", "name": "a processor"},
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
    monkeypatch.setattr(platform, "processor", lambda: "")  # some systems do not tell
    assert environment(torch.device("cpu"))["device"]["name"] == platform.machine()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the card {device}")
    cuda = environment(torch.device("cuda", 0))["device"]
    assert cuda == {"type": "cuda", "name": "the card cuda:0"}


def test_what_was_cut_from_the_data_is_on_record(tmp_path: Path) -> None:
    assert run_of(tmp_path, *NET).read_manifest()["data"]["notes"] == []
    some = run_of(tmp_path, *NET, "data.train_examples=16").read_manifest()["data"]
    assert some["notes"] == ["16 of 40 training examples"]


# --- the outcome ---------------------------------------------------------------------------------


def test_a_run_that_diverged_says_where(tmp_path: Path) -> None:
    run = run_of(tmp_path, *NET, "train.optimizer={name: sgd, lr: 1e20}")
    manifest, summary = run.read_manifest(), run.read_summary()
    steps = run.read("steps")
    last = int(steps["step"].iloc[-1])
    assert manifest["status"] == "diverged"
    assert summary["steps"] == last
    assert steps["loss"].isna().tolist()[-1] or steps["loss"].iloc[-1] == float("inf")
    assert summary["diverged"]["step"] == last
    first = summary["nonfinite"]
    assert manifest["outcome"] == (
        f"diverged at step {last}; the {first['tensor']} of {first['layer']} is the first that is "
        f"not finite, at step {first['step']}"
    )
    # The net as it was before that step was looked at: as a training set's end would be.
    assert run.read("epochs").iloc[-1]["step"] == last
    assert set(run.read("units")["step"]) >= {0}


def test_nothing_that_is_no_json_gets_into_a_summary(tmp_path: Path) -> None:
    run = run_of(tmp_path, *NET, "train.optimizer={name: sgd, lr: 1e20}")

    def refuse(word: str) -> None:
        raise AssertionError(word)

    for path in (run.summary, run.manifest):
        json.loads(path.read_text(), parse_constant=refuse)


def test_a_test_set_is_looked_at_though_nothing_is_trained(tmp_path: Path) -> None:
    run = run_of(tmp_path, *NET, "train={steps: 0}", "model.norm=batch")
    summary = run.read_summary()
    learner = Learner(config_of(*NET, "train={steps: 0}", "model.norm=batch"), torch.device("cpu"))
    assert (summary["test_loss"], summary["test_accuracy"]) == pytest.approx(learner.evaluate())
    assert "train_loss" not in summary
    assert run.read("epochs").empty
    assert run.read_manifest()["outcome"] == "finished 0 steps"


def test_dead_units_are_those_of_the_last_probe(tmp_path: Path) -> None:
    """A step this large kills all hidden units."""
    run = run_of(
        tmp_path, *NET, "train={steps: 2, optimizer: {name: sgd, lr: 300}}", "probe.every=1"
    )
    dead = run.read("units").groupby("step")["dead"].sum()
    assert dead.iloc[0] < dead.iloc[-1]
    assert run.read_summary()["dead_units"] == dead.iloc[-1]
    assert run.read_summary()["units"] == 5 + 5 + 3


def test_an_observer_need_not_care(tmp_path: Path) -> None:
    execute(config_of(*NET), tmp_path / "none")
    execute(config_of(*NET), tmp_path / "plain", observer=Observer())


def test_a_finished_run_tells_nobody_anything(tmp_path: Path) -> None:
    class Never(Observer):
        def started(self, start: Any) -> None:
            raise AssertionError(start)

        closed = started  # type: ignore[assignment]

    config = config_of(*NET)
    run = execute(config, tmp_path).run
    before = {path: path.stat().st_mtime_ns for path in run.path.iterdir() if path != run.lock}
    outcome = execute(config, tmp_path, observer=Never())
    assert (outcome.already_done, outcome.resumed_from) == (True, None)
    assert {path: path.stat().st_mtime_ns for path in before} == before
