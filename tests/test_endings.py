"""How a run ends on record: its summary, its manifest, its clock, and who hears of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gradexp.records import RunDir
from gradexp.train import EpochEnd, Observer, Progress, Start, execute
from gradexp.train.learner import Learner
from tests.checkpoints import read_checkpoint, write_checkpoint
from tests.clocks import Clock
from tests.conftest import StopAt
from tests.nets import config_of, run_of

NET = ("model={family: mlp, depth: 2, width: 5}", "train={epochs: 2}")


class Ear(Observer):
    """Notes what it is told, in order."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def started(self, start: Start) -> None:
        self.heard.append(start)

    def progressed(self, progress: Progress) -> None:
        self.heard.append(progress)

    def epoch_ended(self, end: EpochEnd) -> None:
        self.heard.append(end)

    def closed(self) -> None:
        self.heard.append("closed")


def test_whoever_listens_hears_of_the_start_the_epochs_and_the_end(tmp_path: Path) -> None:
    ear = Ear()
    run = execute(config_of(*NET), tmp_path, observer=ear).run
    first, *_, last = ear.heard
    assert first == Start("net", ["hidden.1", "hidden.2", "readout"], 10, 5, 0)
    assert last == "closed"
    ends = [one for one in ear.heard if isinstance(one, EpochEnd)]
    assert [(one.epoch, one.step) for one in ends] == [(1, 5), (2, 10)]
    epochs = run.read("epochs")
    for end, row in zip(ends, epochs.itertuples(), strict=True):
        told = (end.train_loss, end.train_accuracy, end.test_loss, end.test_accuracy)
        written = (row.train_loss, row.train_accuracy, row.test_loss, row.test_accuracy)
        assert told == pytest.approx(written, rel=1e-8)
    steps = [one.step for one in ear.heard if isinstance(one, Progress)]
    assert steps[-1] == 10
    assert steps == sorted(steps)


def test_the_end_is_told_also_when_the_run_breaks(tmp_path: Path) -> None:
    ear = Ear()
    config = config_of(*NET, "data.examples=3", "model.norm=batch", "data.batch_size=2")
    ear.progressed = StopAt(1).progressed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path, observer=ear)
    assert ear.heard[-1] == "closed"


def test_the_summary_has_the_last_figures(tmp_path: Path) -> None:
    run = run_of(tmp_path, *NET)
    summary, epochs = run.read_summary(), run.read("epochs")
    assert (summary["steps"], summary["epochs"]) == (10, 2)
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert summary[name] == pytest.approx(epochs[name].iloc[-1], rel=1e-8)
        assert epochs[name].iloc[0] != epochs[name].iloc[-1] or "accuracy" in name
    last = run.read("units").query("step == step.max()")
    assert summary["units"] == last["units"].sum() == 5 + 5 + 3
    assert summary["dead_units"] == last["dead"].sum()
    assert (summary["nonfinite"], summary["diverged"]) == (None, None)
    assert summary["reading"].startswith("3 layers (relu) reached training accuracy ")


@pytest.mark.parametrize("examples", [5, 12])
def test_the_rule_of_three(tmp_path: Path, examples: int) -> None:
    """A unit that fired on none of n examples fires on less than 3 / n of all (95 %)."""
    run = run_of(tmp_path, *NET, f"probe.examples={examples}")
    assert run.read_summary()["probe_examples"] == examples
    assert run.read_summary()["dead_unit_fires_on_less_than"] == pytest.approx(3 / examples)


@pytest.mark.parametrize(
    ("activation", "known"), [("tanh", False), ("gelu", False), ("relu", True), ("relu6", True)]
)
def test_dead_units_are_null_where_nothing_can_die(
    tmp_path: Path, activation: str, *, known: bool
) -> None:
    run = run_of(tmp_path, *NET, f"model.activation={activation}")
    assert (run.read_summary()["dead_units"] is not None) == known


def test_the_manifest_says_what_the_figures_depend_on(tmp_path: Path) -> None:
    run = run_of(tmp_path, *NET, "data.train_examples=16")
    manifest = run.read_manifest()
    assert (manifest["status"], manifest["outcome"]) == ("finished", "finished 4 steps")
    assert manifest["name"] == "net"
    assert run.name == f"net-{manifest['id']}"
    assert set(manifest["versions"]) == {"gradexp", "python", "torch"}
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["device"]["type"] == "cpu"
    assert manifest["threads"] == torch.get_num_threads()
    assert manifest["imports"] == {}
    assert len(manifest["data"]["fingerprint"]) >= 8
    assert any("16 of" in note for note in manifest["data"]["notes"])
    assert manifest["started"] <= manifest["ended"]
    assert manifest["seconds"] >= 0


def test_a_run_that_went_on_counts_its_time_from_the_first_attempt(tmp_path: Path) -> None:
    config = config_of(*NET)
    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path, observer=StopAt(5))
    (path,) = tmp_path.iterdir()
    run = RunDir(path)
    begun = run.read_manifest() | {"started": "2001-02-03T04:05:06+00:00", "seconds": 1000.0}
    run.write_manifest(begun)
    (path / ".summary.json.1.tmp").write_text("half a file of a killed process")
    outcome = execute(config, tmp_path)
    manifest = outcome.run.read_manifest()
    assert outcome.resumed_from is not None
    assert manifest["started"] == "2001-02-03T04:05:06+00:00"
    assert 1000 < manifest["seconds"] < 1100
    assert not list(path.glob(".*.tmp"))
    assert not run.checkpoint.exists()


def test_a_run_of_another_version_begins_anew(tmp_path: Path) -> None:
    config = config_of(*NET)
    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path, observer=StopAt(5))
    (path,) = tmp_path.iterdir()
    saved = read_checkpoint(path / "checkpoint.pt")
    write_checkpoint(path / "checkpoint.pt", {**saved, "format": saved["format"] + 1})
    outcome = execute(config, tmp_path)
    assert outcome.resumed_from is None
    assert outcome.begun_anew == "checkpoint.pt is of another version of gradexp"
    assert len(outcome.run.read("steps")) == 10
    whole = execute(config, tmp_path / "whole").run
    assert whole.table_path("gradients").read_bytes() == (
        outcome.run.table_path("gradients").read_bytes()
    )


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_looking_only_changes_nothing(tmp_path: Path, norm: str) -> None:
    """With `train.steps: 0` there is one step on record, without an update."""
    settings = (*NET, f"model.norm={norm}", "train={steps: 0}")
    run = run_of(tmp_path, *settings)
    steps, gradients = run.read("steps"), run.read("gradients")
    assert steps["step"].tolist() == [0]
    assert gradients["update_norm"].isna().all()
    assert (gradients["grad_norm"] > 0).all()
    assert run.read_summary()["steps"] == 0
    learner = Learner(config_of(*settings), torch.device("cpu"))
    before = [one.clone() for one in (*learner.network.parameters(), *learner.network.buffers())]
    learner.observe_only()
    after = [*learner.network.parameters(), *learner.network.buffers()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_evaluation_and_probes_are_no_part_of_a_step(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 1 s, a probe 100 s, an evaluation 10,000 s."""
    step, evaluate = Learner.step, Learner.evaluate

    def slow_step(learner: Learner, *arguments: Any) -> None:
        clock.now += 1
        step(learner, *arguments)

    def slow_evaluate(learner: Learner) -> tuple[float, float]:
        clock.now += 10_000
        return evaluate(learner)

    monkeypatch.setattr(Learner, "step", slow_step)
    monkeypatch.setattr(Learner, "evaluate", slow_evaluate)
    from gradexp.probes.looking import Prober

    look = Prober.look

    def slow_look(prober: Prober, at: int) -> Any:
        clock.now += 100
        return look(prober, at)

    monkeypatch.setattr(Prober, "look", slow_look)
    run = run_of(tmp_path, *NET, "probe.every=5")
    assert run.read("steps")["step_seconds"].tolist() == [1.0] * 10
    # A probe belongs to the epoch that begins with it, the last one to none.
    assert run.read("epochs")["seconds"].tolist() == [5 + 100, 5 + 100]


def test_what_went_wrong_is_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_learner: Learner) -> tuple[float, float]:
        raise ZeroDivisionError("of the program")

    monkeypatch.setattr(Learner, "evaluate", broken)
    with pytest.raises(ZeroDivisionError):
        run_of(tmp_path, *NET)
    (path,) = tmp_path.iterdir()
    manifest = RunDir(path).read_manifest()
    assert manifest["status"] == "failed"
    assert manifest["error"] == "ZeroDivisionError: of the program"
    assert "ended" in manifest
    assert "ZeroDivisionError: of the program" in (path / "traceback.txt").read_text()
