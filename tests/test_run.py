"""One run through the public interface: its files, its repetition, its end, its interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
import torch

from gradexp.config import load_config
from gradexp.errors import ConfigError, RunError
from gradexp.records import TABLES, RunDir
from gradexp.train import execute
from tests.conftest import ROOT, Cli, StopAt, Train, real_data
from tests.nets import run_of

TIMING = {
    name: [column.name for column in table.columns if column.timing]
    for name, table in TABLES.items()
}


def tables(run: RunDir) -> dict[str, pd.DataFrame]:
    return {name: run.read(name).drop(columns=TIMING[name]) for name in TABLES}


def assert_same_tables(one: RunDir, other: RunDir) -> None:
    for name in TABLES:
        if not TIMING[name]:
            assert one.table_path(name).read_bytes() == other.table_path(name).read_bytes(), name
        pd.testing.assert_frame_equal(tables(one)[name], tables(other)[name], check_exact=True)


def test_files_and_columns_are_those_of_the_contract(train: Train) -> None:
    run = train()
    expected = {
        "layers": "layer_index,layer,kind,fan_in,fan_out,units,parameters,activation,norm,"
        "flat,bounded,slope,init_std",
        "gradients": "step,layer_index,layer,grad_norm,clipped_grad_norm,bias_grad_norm,"
        "weight_norm,update_norm",
        "signal": "step,layer_index,layer,pre_mean,pre_std,post_mean,post_std,pre_grad_norm,"
        "saturated_fraction",
        "units": "step,layer_index,layer,units,dead,born_dead,died,revived,certified_dead,"
        "inactive_fraction,no_grad_units,zero_grad_fraction,empty_kernels",
        "unit_events": "step,layer_index,layer,unit,event",
        "steps": "step,epoch,loss,accuracy,lr,grad_norm,clip_coefficient,step_seconds",
        "epochs": "epoch,step,train_loss,train_accuracy,test_loss,test_accuracy,seconds",
    }
    for name, header in expected.items():
        assert (run.path / f"{name}.csv").read_text().splitlines()[0] == header
    assert run.read("steps")["step"].tolist() == list(range(12))
    assert len(run.read("gradients")) == 12 * 4
    assert sorted(run.read("units")["step"].unique()) == [0, 4, 8, 12]
    assert run.read("epochs")[["epoch", "step"]].to_numpy().tolist() == [[1, 8], [2, 12]]
    assert run.status() == "finished"
    assert not run.checkpoint.exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.norm=batch", "model.dropout=0.2", "data.augment=crop_flip"],
        ["model.family=cnn", "model.width=4", "train.optimizer=adam"],
    ],
)
def test_same_config_same_bytes(train: Train, overrides: list[str]) -> None:
    assert_same_tables(train(*overrides, parent="a"), train(*overrides, parent="b"))


def test_another_seed_is_another_run(train: Train) -> None:
    first, second = train(), train("seed=1")
    assert first.path != second.path
    assert first.read("steps")["loss"][0] != second.read("steps")["loss"][0]


def test_a_seed_means_the_same_run_in_every_release(tmp_path: Path) -> None:
    """First weights, order of examples, augmentation, dropout, chosen examples: all are drawn."""
    run = run_of(
        tmp_path,
        "seed=7",
        "model={family: cnn, depth: 4, width: 4, stages: 1, dropout: 0.3, init: kaiming_normal}",
        "data.augment=crop_flip",
        "data.train_examples=32",
        "train.steps=6",
        "probe={every: 6, examples: 12}",
    )
    losses = [1.1685333, 1.1257892, 1.1004356, 1.1772442, 1.1184198, 1.2525581]
    assert list(run.read("steps")["loss"]) == pytest.approx(losses, rel=1e-4)
    first = run.read("signal").groupby("step")["pre_grad_norm"].first()
    assert list(first) == pytest.approx([0.22477016, 0.15817216], rel=1e-4)


def test_gradients_every_thins_the_same_rows(train: Train) -> None:
    every, third = train().read("gradients"), train("probe.gradients_every=3").read("gradients")
    kept = every[every["step"] % 3 == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(third, kept)


def test_zero_steps_observe_the_initialization_only(train: Train) -> None:
    run = train("train.steps=0")
    assert run.read("steps")["step"].tolist() == [0]
    gradients = run.read("gradients")
    assert (gradients["grad_norm"] > 0).all()
    assert gradients["update_norm"].isna().all()
    assert run.read("epochs").empty
    assert run.read("units")["step"].unique().tolist() == [0]
    # The first step of a longer run sees the very same net and batch.
    longer = train().read("gradients")
    first = longer[longer["step"] == 0].drop(columns="update_norm")
    pd.testing.assert_frame_equal(gradients.drop(columns="update_norm"), first)


def test_a_finished_run_is_not_repeated(tiny: Path, tmp_path: Path) -> None:
    config = load_config(tiny)
    first = execute(config, tmp_path)
    written = first.run.table_path("steps").stat().st_mtime_ns
    again = execute(config, tmp_path)
    assert again.already_done
    assert again.run.table_path("steps").stat().st_mtime_ns == written
    assert not execute(config, tmp_path, fresh=True).already_done


@pytest.mark.parametrize("at", [1, 5, 9])
def test_an_interrupted_run_goes_on_bit_for_bit(tiny: Path, tmp_path: Path, at: int) -> None:
    settings = ["model.norm=batch", "model.dropout=0.1", "train.optimizer=adam"]
    config = load_config(tiny, [*settings, "probe.gradients_every=2"])
    whole = execute(config, tmp_path / "whole").run
    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path / "parts", observer=StopAt(at), checkpoint_seconds=0)
    outcome = execute(config, tmp_path / "parts")
    assert outcome.resumed_from is not None
    assert outcome.resumed_from < 12
    assert_same_tables(whole, outcome.run)


@pytest.mark.parametrize("lr", ["0.05", "1e30"])
def test_ctrl_c_while_a_run_is_judged_costs_little(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lr: str
) -> None:
    config = load_config(tiny, [f"train.optimizer.lr={lr}"])
    whole = execute(config, tmp_path / "whole").run
    with monkeypatch.context() as patch:
        patch.setattr("gradexp.train.run.conclude", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            execute(config, tmp_path / "parts")
    outcome = execute(config, tmp_path / "parts")
    assert outcome.resumed_from is not None
    assert outcome.run.status() == whole.status()
    assert_same_tables(whole, outcome.run)


def cut(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])


def as_of_another_version(checkpoint: Path) -> None:
    torch.save({"format": 1, "state": {"step": 5}}, checkpoint)


@pytest.mark.parametrize("spoil", [cut, as_of_another_version])
def test_a_useless_checkpoint_costs_work_but_no_result(
    tiny: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    config = load_config(tiny)
    whole = execute(config, tmp_path / "whole").run
    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path / "parts", observer=StopAt(5), checkpoint_seconds=0)
    (folder,) = (tmp_path / "parts").iterdir()
    spoil(RunDir(folder).checkpoint)
    outcome = execute(config, tmp_path / "parts")
    assert outcome.resumed_from is None
    assert_same_tables(whole, outcome.run)


def test_kill_9_leaves_readable_files_and_the_same_command_goes_on(
    tiny: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "gradexp", "run", str(tiny), "--out", str(tmp_path / "runs")]
    command += ["--set", "train.steps=1500", "--set", "probe.every=750"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    steps = next_file(tmp_path / "runs", "steps.csv", process)
    while steps.stat().st_size < 5000:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = RunDir.open(steps.parent)
    seen = run.read("steps")["step"].tolist()
    assert seen == list(range(len(seen)))
    assert run.status() == "running"
    subprocess.run(command, check=True, capture_output=True)
    assert run.status() == "finished"
    assert run.read("steps")["step"].tolist() == list(range(1500))


def next_file(folder: Path, name: str, process: subprocess.Popen[bytes]) -> Path:
    """Wait until a process has written a file of that name below a folder."""
    while not (found := list(folder.glob(f"*/{name}"))):
        assert process.poll() is None, "the run ended before it wrote anything"
        time.sleep(0.01)
    return found[0]


def test_a_run_in_use_is_refused(tiny: Path, tmp_path: Path) -> None:
    config = load_config(tiny)
    run = execute(config, tmp_path).run
    with run.locked(), pytest.raises(RunError, match="another process"):
        execute(config, tmp_path)


def test_a_full_disk_is_a_clear_error_and_nothing_is_lost(cli: Cli, tiny: Path) -> None:
    limited = [sys.executable, str(ROOT / "tests" / "limited.py"), "20000", "run", str(tiny)]
    failed = subprocess.run(
        [*limited, "--set", "train.steps=400"],
        cwd=tiny.parent,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert failed.returncode == 1, failed.stderr
    assert "cannot be written: File too large" in failed.stderr
    assert "Traceback" not in failed.stderr
    result = cli("run", tiny, "--set", "train.steps=400")
    assert result.returncode == 0, result.stderr
    (folder,) = (tiny.parent / "runs").iterdir()
    assert RunDir(folder).read("steps")["step"].tolist() == list(range(400))


def test_a_failure_is_on_record(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_arguments: object) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr("gradexp.train.learner.Learner.step", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        execute(load_config(tiny), tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    manifest = RunDir(folder).read_manifest()
    assert manifest["status"] == "failed"
    assert "no memory left" in manifest["error"]
    assert "out_of_memory" in (folder / "traceback.txt").read_text()


def test_an_absent_device_is_a_config_error(tiny: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ConfigError, match="device: cuda is not available here; usable: auto, cpu"):
        execute(load_config(tiny, ["device=cuda"]), tmp_path)


def test_deep_sigmoid_net_on_mnist(tmp_path: Path) -> None:
    """First-layer gradients many orders below the last, accuracy that of chance."""
    real_data()
    config = load_config(
        ROOT / "configs" / "mnist_sigmoid30.yaml",
        ["train.steps=60", "data.train_examples=8192", "probe.examples=256"],
    )
    run = execute(config, tmp_path).run
    gradients = run.read("gradients")
    first, last = (gradients[gradients["layer_index"] == index] for index in (1, 31))
    assert (first["grad_norm"] > 0).all()
    assert (last["grad_norm"].to_numpy() / first["grad_norm"].to_numpy() > 1e12).all()
    assert run.read_summary()["test_accuracy"] < 0.2
    assert "vanishing" in [verdict["name"] for verdict in run.read_summary()["verdicts"]]


def test_the_cured_net_on_mnist_learns(tmp_path: Path) -> None:
    real_data()
    config = load_config(
        ROOT / "configs" / "mnist_relu30_cured.yaml",
        ["train.steps=250", "probe.examples=256"],
    )
    summary = execute(config, tmp_path).run.read_summary()
    assert summary["test_accuracy"] > 0.6
    assert summary["verdicts"][0]["name"] == "healthy"
