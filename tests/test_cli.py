"""The commands as users run them: output, exit codes, streams."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradexp.config import REGISTRIES, load_config
from gradexp.train import execute
from tests.conftest import ROOT, Cli, real_data

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_help_names_every_command_without_importing_torch(cli: Cli) -> None:
    result = cli("--help", PYTHONPROFILEIMPORTTIME="1")
    assert result.returncode == 0
    for command in ("run", "sweep", "status", "report", "list", "show", "schema"):
        assert f" {command} " in result.stdout
    assert " torch" not in result.stderr
    assert " pandas" not in result.stderr


def test_run_ends_with_table_reading_verdict_and_path(cli: Cli, tiny: Path) -> None:
    result = cli("run", tiny)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert sum(line.startswith("hidden.") for line in lines) == 3
    assert any("reached training accuracy" in line for line in lines)
    assert (tiny.parent / lines[-1] / "summary.json").is_file()
    assert "epoch 2, step 12/12" in result.stderr
    for stream in (result.stdout, result.stderr):
        assert "\x1b" not in stream
    again = cli("run", tiny)
    assert again.stdout == result.stdout
    assert "finished already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "nothing.yaml"], "nothing.yaml: cannot be read"),
        (["run", "tiny.yaml", "--set", "model.depht=3"], "Did you mean 'depth'?"),
        (["run", "tiny.yaml", "--device", "gpu"], "should be 'auto', 'cpu', 'cuda' or 'mps'"),
        (
            ["show", "tiny.yaml", "--set", "model.init=kaimng_normal"],
            "Did you mean 'kaiming_normal'",
        ),
        (["list", "activation"], "Did you mean 'activations'?"),
        (["run", "tiny.yaml", "--set", "data.train_examples=99999"], "1442"),
    ],
)
def test_wrong_input_is_exit_code_2_and_no_traceback(
    cli: Cli, tiny: Path, arguments: list[str], expected: str
) -> None:
    assert tiny.name == "tiny.yaml"
    result = cli(*arguments)
    assert result.returncode == 2
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_diverged_run_is_a_result(cli: Cli, tiny: Path) -> None:
    result = cli("run", tiny, "--set", "train.optimizer.lr=1e18")
    assert result.returncode == 0, result.stderr
    assert "diverged" in result.stdout
    (run,) = (tiny.parent / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["diverged"]["step"] == summary["steps"]
    assert json.loads((run / "manifest.json").read_text())["status"] == "diverged"


def test_list_names_every_part(cli: Cli) -> None:
    overview = " ".join(cli("list").stdout.split())
    for kind, registry in REGISTRIES.items():
        assert kind in overview
        for name in registry.names():
            assert name in overview
    details = " ".join(cli("list", "activations").stdout.split())
    assert "negative_slope: float = 0.01" in details
    assert "Maas et al. 2013" in details


def test_show_prints_resolved_config_and_layers(cli: Cli, tiny: Path) -> None:
    result = cli("show", tiny, "--set", "model.activation=tanh")
    assert result.returncode == 0
    assert "name: tanh" in result.stdout
    # 64*16 + 16, twice 16*16 + 16, 16*10 + 10
    assert "1,754 parameters" in result.stdout
    assert not (tiny.parent / "runs").exists()


def test_schema_is_json(cli: Cli) -> None:
    schema = json.loads(cli("schema").stdout)
    assert {"data", "model", "train", "probe"} <= set(schema["properties"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_trains_two_steps(path: Path, tmp_path: Path) -> None:
    overrides = ["train.steps=2", "probe.examples=32", "data.batch_size=16"]
    if "sweep:" in path.read_text():
        pytest.skip("a sweep: tested with the sweeps")
    if "dataset: digits" not in path.read_text():
        real_data()
        overrides.append("data.train_examples=512")
    if "cifar" in path.name:
        overrides.append("data.verify=false")
    run = execute(load_config(path, overrides), tmp_path).run
    assert run.read("steps")["step"].tolist() == [0, 1]
    assert run.status() == "finished"
