"""By what a run is judged is part of it: whoever asks gets one answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gradexp.analysis import RULES, judge
from gradexp.cli.app import app
from gradexp.records import RunDir
from tests.fabricated_runs import Fabricated, verdicts

TINY = """\
name: tiny
data: {dataset: digits, batch_size: 32}
model: {family: mlp, depth: 3, width: 8}
train: {steps: 4}
probe: {examples: 16}
"""
ANXIOUS = "dying: {share: 0.001, noted: 0.001}\n"
GIDDY = """\
from gradexp.analysis import RULES, Verdict
from gradexp.registry import Count


@RULES.register("giddy")
def giddy(evidence, *, steps: Count = 3):
    \"\"\"The run is longer than it should be.\"\"\"
    if evidence.totals.steps < steps:
        return None
    return Verdict("giddy", "warning", (), (0, 4), 4.0, steps, "steps", "Round.", "Sit down.")
"""


def call(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def reported(*arguments: object) -> list[list[str]]:
    """The verdicts of every run in a report."""
    runs = json.loads(call("report", *arguments, "--format", "json").stdout)["runs"]
    return [[verdict["name"] for verdict in given] for given in runs.values()]


def noted(run: RunDir) -> list[str]:
    """The verdicts with which a run ended."""
    return [verdict["name"] for verdict in run.read_summary()["verdicts"]]


def only_run(parent: Path) -> RunDir:
    (path,) = parent.iterdir()
    return RunDir(path)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """With a config, a file of limits under which any run is dying, and a rule of one's own."""
    (tmp_path / "limits.yaml").write_text("giddy: {steps: 2}\n")
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "own.yaml").write_text(f"imports: [giddy.py]\n{TINY}")
    (tmp_path / "giddy.py").write_text(GIDDY)
    yield tmp_path
    forget()


def forget() -> None:
    """As in a process that has not met the rule."""
    if "giddy" in RULES:
        RULES.remove("giddy")
    for name in [name for name in sys.modules if name.startswith("gradexp_parts_")]:
        del sys.modules[name]


def test_a_run_is_judged_by_the_limits_of_its_config_everywhere(folder: Path) -> None:
    (folder / "limits.yaml").write_text("stalled: {steps: 1, gain: 1.0, recent: 1.0}\n")
    (folder / "tiny.yaml").write_text(f"rules: limits.yaml\n{TINY}")
    assert "stalled" in call("run", folder / "tiny.yaml", "--out", folder / "runs").stdout
    run = only_run(folder / "runs")
    assert "stalled" in noted(run)
    (folder / "limits.yaml").unlink()
    assert reported(run.path) == [noted(run)]
    assert noted(run)[0] in call("status", run.path).stdout
    repeated = call("run", run.config, "--out", folder / "again").stdout
    assert "stalled" in repeated
    assert only_run(folder / "again").name == run.name


def test_another_file_of_limits_judges_a_finished_run_anew(folder: Path) -> None:
    config, runs = folder / "tiny.yaml", folder / "runs"
    strict = folder / "strict.yaml"
    strict.write_text("stalled: {steps: 1, gain: 1.0, recent: 1.0}\n")
    call("run", config, "--out", runs)
    run = only_run(runs)
    before, steps = noted(run), run.read("steps")
    assert "stalled" not in before
    assert reported(run.path, "--rules", strict) != reported(run.path) == [before]
    assert "stalled" in call("status", run.path, "--rules", strict).stdout
    again = call("run", config, "--out", runs, "--rules", strict)
    assert "finished already" in again.stderr
    assert "stalled" in noted(run)
    assert reported(run.path) == [noted(run)]
    assert run.read("steps").equals(steps)
    call("run", config, "--out", runs)
    assert noted(run) == before


def test_a_rule_of_ones_own_speaks_everywhere(folder: Path) -> None:
    config, runs = folder / "own.yaml", folder / "runs"
    printed = call("run", config, "--out", runs).stdout
    assert "giddy" in printed
    assert "Sit down." in printed
    run = only_run(runs)
    forget()
    assert "giddy" in noted(run)
    assert reported(run.path) == [noted(run)]
    forget()
    table = call("report", run.path, "--fail-on", "giddy", "--html", folder / "page.html", code=1)
    assert "giddy" in table.stdout
    assert "giddy" in (folder / "page.html").read_text()
    forget()
    (folder / "lenient.yaml").write_text("giddy: {steps: 99}\n")
    assert "giddy" not in reported(run.path, "--rules", folder / "lenient.yaml")[0]


def test_a_rule_of_one_run_judges_no_other(folder: Path) -> None:
    call("run", folder / "own.yaml", "--out", folder / "own")
    call("run", folder / "tiny.yaml", "--out", folder / "plain")
    assert "giddy" in noted(only_run(folder / "own"))
    assert "giddy" not in noted(only_run(folder / "plain"))
    assert reported(folder / "plain", folder / "own") == [
        noted(only_run(folder / name)) for name in ("plain", "own")
    ]


def test_a_run_whose_rule_is_lost_is_named(folder: Path) -> None:
    call("run", folder / "own.yaml", "--out", folder / "runs")
    call("run", folder / "tiny.yaml", "--out", folder / "runs")
    (run,) = [path for path in (folder / "runs").iterdir() if (path / "giddy.py").exists()]
    (run / "giddy.py").write_text("")
    forget()
    result = call("report", folder / "runs")
    assert "is judged by the rule 'giddy', which is not registered here" in result.stderr


def test_a_sweep_judges_by_its_limits_what_is_done_too(folder: Path) -> None:
    sweep, strict = folder / "sweep", folder / "strict.yaml"
    strict.write_text("stalled: {steps: 1, gain: 1.0, recent: 1.0}\n")
    command = ["sweep", folder / "tiny.yaml", "--seeds", 2, "--workers", 1, "--out", sweep]
    call(*command)
    assert not any("stalled" in given for given in reported(sweep))
    assert "stalled" in call("status", sweep, "--rules", strict).stdout
    assert "stalled" in call(*command, "--rules", strict).stdout
    assert all("stalled" in given for given in reported(sweep))
    assert "stalled" in call("status", sweep).stdout
    text = (sweep / "sweep.yaml").read_text()
    assert "rules: rules.yaml" in text
    assert (sweep / "rules.yaml").read_bytes() == strict.read_bytes()


@pytest.mark.parametrize("command", [["run"], ["sweep", "--seeds", "2"]])
def test_wrong_limits_are_refused_before_anything_runs(folder: Path, command: list[str]) -> None:
    wrong, config, out = folder / "wrong.yaml", folder / "tiny.yaml", folder / "there"
    wrong.write_text("dying: {share: 7}\n")
    result = call(*command, config, "--rules", wrong, "--out", out, code=2)
    assert f"{wrong}:1  dying.share: " in result.stderr
    assert not out.exists()
    missing = call(*command, config, "--set", "rules=nothing.yaml", code=2)
    assert f"rules: {folder / 'nothing.yaml'} is not a file" in missing.stderr


def test_no_rule_leans_on_the_limits_of_another(tmp_path: Path) -> None:
    """A loss that rises threefold is not healthy because divergence was given a wide limit."""
    risen: dict[str, Any] = {"loss": (2.3, 7.5), "accuracy": (0.1, 0.1)}
    assert list(verdicts(tmp_path / "as it is", **risen)) == ["diverged"]
    run = Fabricated(**risen).write(tmp_path / "wide")
    run.rules.write_text("diverged: {ratio: 50}\n")
    assert [verdict.name for verdict in judge(run)] == ["stalled"]
