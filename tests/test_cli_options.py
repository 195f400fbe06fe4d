"""Every option of every command arrives at what it calls; exit codes and streams come back."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.text import Text

import gradexp
import gradexp.report
from gradexp.cli import sweeping
from gradexp.errors import ConfigError, DataError, RunError
from gradexp.records import RunDir
from gradexp.report import Outcome
from gradexp.sweeps import Plan, SweepOptions, SweepOutcome, View
from gradexp.sweeps.directory import SweepDir
from tests.fabricated_runs import LOST, Fabricated
from tests.sweeps import states, write_config
from tests.terminals import Answer, Terminal, call, displays, terminal

__all__ = ["displays", "terminal"]

NOT_DYING = "dying: false\n"
ONE_CELL = ["--grid", "seed=0"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command is called in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, folders too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def ran(answer: Answer, parent: str = "runs") -> RunDir:
    """The only run below a folder; the command ended well and named its directory last."""
    assert answer.exit_code == 0, answer.stderr
    (path,) = Path(parent).iterdir()
    assert answer.lines[-1] == str(path)
    return RunDir(path)


def config_of(run: RunDir) -> dict[str, Any]:
    content = yaml.safe_load(run.config.read_text())
    assert isinstance(content, dict)
    return content


# --- run ---


def test_settings_folder_and_device_reach_the_run(tiny: Path, here: Path) -> None:
    settings = ["--set", "model.depth=2", "--set", "seed=7"]
    config = config_of(ran(call("run", tiny, *settings, "--out", "a/b", "--device", "cpu"), "a/b"))
    assert (config["model"]["depth"], config["seed"], config["device"]) == (2, 7, "cpu")
    assert not (here / "runs").exists()


def test_without_options_a_run_is_as_its_file_says(tiny: Path) -> None:
    config = config_of(ran(call("run", tiny)))
    assert (config["model"]["depth"], config["seed"], config["device"]) == (3, 0, "auto")
    assert config["rules"] is None


def test_device_and_rules_overrule_settings(tiny: Path, here: Path) -> None:
    (here / "limits.yaml").write_text(NOT_DYING)
    settings = ["--set", "device=cuda", "--set", "rules=nothing.yaml"]
    answer = call("run", tiny, *settings, "--rules", "limits.yaml", "--device", "cpu")
    assert config_of(ran(answer))["device"] == "cpu"


@pytest.mark.parametrize("name", ["limits.yaml", "my: limits, #1 [all].yaml"])
def test_limits_are_looked_for_here_and_not_beside_the_config(
    tiny: Path, here: Path, name: str
) -> None:
    assert "\ndying " in call("run", tiny, "--out", "as it is").stdout
    (here / "configs").mkdir()
    config = tiny.rename(here / "configs" / tiny.name)
    (here / name).write_text(NOT_DYING)
    answer = call("run", config, "--rules", name)
    assert "dying" not in answer.stdout
    assert "healthy" in answer.stdout
    assert ran(answer).rules.read_text() == NOT_DYING


def test_fresh_begins_anew(tiny: Path) -> None:
    first = call("run", tiny)
    run = ran(first)
    before = run.read_manifest()
    run.write_manifest({**before, "mark": "of the first time"})
    again = call("run", tiny)
    assert "finished already" in again.stderr
    assert run.read_manifest()["mark"]
    fresh = call("run", tiny, "--fresh")
    assert fresh.stderr == first.stderr
    assert "mark" not in run.read_manifest()
    assert first.stdout == again.stdout == fresh.stdout


# --- sweep ---


@dataclass
class Asked:
    """Stands for what carries out sweeps: notes what it was asked for, and answers as told."""

    failures: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    plan: Plan | None = None
    directory: Path | None = None
    options: SweepOptions | None = None
    view: View | None = None

    def __call__(
        self,
        plan: Plan,
        out: Path,
        options: SweepOptions | None = None,
        view: View | None = None,
    ) -> SweepOutcome:
        self.plan, self.directory, self.options, self.view = plan, out, options, view
        sweep = SweepDir(out)
        with sweep.locked():
            sweep.write_plan(plan)
        if view:
            view.opened(len(plan.cells))
        return SweepOutcome(out, Counter(), 0, self.failures, self.interrupted)

    @property
    def cells(self) -> list[dict[str, Any]]:
        """The settings of the cells that were asked for."""
        assert self.plan
        return [cell.config.model_dump(mode="json") for cell in self.plan.cells]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr(sweeping, "run_sweep", asked)
    return asked


def options(**given: Any) -> SweepOptions:
    """These, and for all others what the help promises."""
    usual = {
        "engine": "local",
        "workers": None,
        "address": None,
        "retry_failed": False,
        "fail_fast": False,
        "checkpoint_seconds": 15.0,
    }
    return SweepOptions(**{**usual, **given})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--engine", "ray"], {"engine": "ray"}),
        (["--engine", "local"], {}),
        (["--engine", "ray", "--address", "a:1"], {"engine": "ray", "address": "a:1"}),
        (["--workers", "3"], {"workers": 3}),
        (["--workers", "1"], {"workers": 1}),
        (["--retry-failed"], {"retry_failed": True}),
        (["--fail-fast"], {"fail_fast": True}),
    ],
)
def test_how_a_sweep_is_carried_out(
    tiny: Path, asked: Asked, arguments: list[str], expected: dict[str, Any]
) -> None:
    assert call("sweep", tiny, *ONE_CELL, *arguments).exit_code == 0
    assert asked.options == options(**expected)


def test_what_a_sweep_carries_out(tiny: Path, asked: Asked, here: Path) -> None:
    (here / "limits.yaml").write_text(NOT_DYING)
    axes = ["--grid", "model.depth=2,4", "--grid", "train.steps=5,6,7"]
    more = ["--set", "model.width=9", "--device", "cpu", "--rules", "limits.yaml", "--seeds", "2"]
    assert call("sweep", tiny, *axes, *more).exit_code == 0
    cells = [(cell["model"]["depth"], cell["train"]["steps"], cell["seed"]) for cell in asked.cells]
    assert cells == [(d, s, seed) for d in (2, 4) for s in (5, 6, 7) for seed in (0, 1)]
    for cell in asked.cells:
        assert (cell["model"]["width"], cell["device"]) == (9, "cpu")
        assert cell["rules"] == str(here / "limits.yaml")


def test_a_sweep_without_options_is_as_its_file_says(tiny: Path, asked: Asked) -> None:
    tiny.write_text(tiny.read_text() + "sweep: {seeds: 3, grid: {model.depth: [2, 3]}}\n")
    assert call("sweep", tiny).exit_code == 0
    assert [(cell["model"]["depth"], cell["seed"]) for cell in asked.cells] == [
        (depth, seed) for depth in (2, 3) for seed in (0, 1, 2)
    ]
    assert {cell["device"] for cell in asked.cells} == {"auto"}
    assert call("sweep", tiny, "--seeds", "1").exit_code == 0
    assert [cell["seed"] for cell in asked.cells] == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "directory"),
    [([], "sweeps/tiny"), (["--set", "name=other"], "sweeps/other"), (["--out", "mine"], "mine")],
)
def test_where_a_sweep_goes(tiny: Path, asked: Asked, arguments: list[str], directory: str) -> None:
    answer = call("sweep", tiny, *ONE_CELL, *arguments)
    assert asked.directory == Path(directory)
    assert answer.lines == [
        "seed  status   verdict",
        "0     planned",
        "",
        "1 cell: 1 planned. The same sweep command goes on.",
        "",
        directory,
    ]
    assert answer.stderr == "1 cell to run\n"


@pytest.mark.parametrize(
    ("failures", "interrupted", "code"),
    [({}, False, 0), ({"a": "why"}, False, 1), ({}, True, 130), ({"a": "why"}, True, 130)],
)
def test_the_exit_code_of_a_sweep(
    tiny: Path, asked: Asked, failures: dict[str, str], interrupted: bool, code: int
) -> None:
    asked.failures, asked.interrupted = failures, interrupted
    answer = call("sweep", tiny, "--grid", "seed=0,1", "--out", "a [b] folder", width=40)
    assert answer.exit_code == code
    again = f"interrupted; to go on: gradexp sweep {tiny} --grid seed=0,1 --out 'a [b] folder'"
    assert answer.stderr.splitlines() == ["2 cells to run", *([again] if interrupted else [])]
    assert answer.lines[-1] == "a [b] folder"


def test_a_dry_run_runs_and_writes_nothing(
    tiny: Path, asked: Asked, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan_table(plan: Plan, out: Path, workers: int | None = None) -> Text:
        return Text(f"{len(plan.cells)} cells to {out} by {workers}")

    monkeypatch.setattr(sweeping, "plan_table", plan_table)
    before = files(here)
    answer = call("sweep", tiny, "--dry-run", "--seeds", "4")
    assert answer == Answer(0, "4 cells to sweeps/tiny by None\n", "")
    answer = call("sweep", tiny, "--dry-run", *ONE_CELL, "--workers", "3", "--out", "there")
    assert answer == Answer(0, "1 cells to there by 3\n", "")
    assert asked.plan is None
    assert files(here) == before


@pytest.mark.usefixtures("forks")
def test_cells_fail_and_are_tried_again_when_that_is_asked_for(here: Path) -> None:
    """The real thing: what a dry run announces, carried out, and failed cells once more."""
    command = ["sweep", write_config(here), "--grid", "data.mode=fine,error", "--workers", "1"]
    command += ["--set", "train.steps=5", "--out", "out"]
    before = files(here)
    planned = call(*command, "--dry-run")
    assert planned.exit_code == 0
    assert [line.split()[::3] for line in planned.lines[1:3]] == [
        ["fine", "planned"],
        ["error", "planned"],
    ]
    assert "2 cells, 2 to run with 1 at a time" in planned.lines[-1]
    assert files(here) == before

    first = call(*command)
    assert (first.exit_code, states(here / "out")) == (1, ["finished", "failed"])
    assert "2 cells to run" in first.stderr
    assert "ValueError: this cell is meant to fail" in first.stderr
    again = call(*command)
    assert (again.exit_code, again.stderr, again.stdout) == (1, "", first.stdout)
    retried = call(*command, "--retry-failed")
    assert (retried.exit_code, retried.stdout) == (1, first.stdout)
    assert "1 cell to run" in retried.stderr


# --- status ---


@pytest.fixture
def sick(here: Path) -> Path:
    """A sweep of one finished run whose gradient vanishes."""
    Fabricated(activation="sigmoid", depth=12, decay=0.6, **LOST).write(here / "out/runs/deep")
    RunDir(here / "out/runs/deep").write_summary({"verdicts": [{"name": "vanishing"}]})
    (here / "out/plan.csv").write_text("model.depth,seed,id,run\n12,0,x,deep\n")
    return here / "out"


def test_status_of_a_sweep_and_of_a_run_by_itself(sick: Path) -> None:
    answer = call("status", "out")
    assert answer == Answer(0, answer.stdout, "")
    assert answer.lines == [
        "model.depth  seed  status    verdict",
        "12           0     finished  vanishing",
        "",
        "1 cell: 1 finished.",
    ]
    assert call("status", sick / "runs/deep").lines[1].split() == ["deep", "finished", "vanishing"]


def test_status_judges_by_other_limits(sick: Path, here: Path) -> None:
    (here / "limits.yaml").write_text("vanishing: {decades: 50}\n")
    assert sick.is_dir()
    assert call("status", "out", "--rules", "limits.yaml").lines[1].split()[-1] == "stalled"


@pytest.mark.parametrize(("arguments", "watch"), [([], False), (["--watch"], True)])
def test_watching_is_asked_for(
    arguments: list[str], watch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(sweeping, "show_status", lambda *given, **how: heard.append((given, how)))
    call("status", "out", *arguments)
    assert heard == [((Path("out"), None), {"watch": watch})]


# --- report ---


@dataclass
class Reported:
    """Stands for what makes reports."""

    outcome: Outcome = field(default_factory=lambda: Outcome("text", [], 0))
    paths: list[Path] | None = None
    given: dict[str, Any] = field(default_factory=dict)

    def __call__(self, paths: list[Path], **given: Any) -> Outcome:
        self.paths, self.given = paths, given
        return self.outcome


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> Reported:
    reported = Reported()
    monkeypatch.setattr(gradexp.report, "make_report", reported)
    return reported


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--by", "depth"], {"by": ["depth"]}),
        (["--by", " model.depth, ,activation ,"], {"by": ["model.depth", "activation"]}),
        (["--html", "a/page.html"], {"html": Path("a/page.html")}),
        (["--figures", "a"], {"figures": Path("a")}),
        (["--format", "csv"], {"format": "csv"}),
        (["--fail-on", "dying"], {"fail_on": ["dying"]}),
        (["--fail-on", "dying, diverged"], {"fail_on": ["dying", "diverged"]}),
        (["--rules", "limits.yaml"], {"rules": Path("limits.yaml")}),
    ],
)
def test_what_a_report_is_asked_for(
    reported: Reported, arguments: list[str], expected: dict[str, Any]
) -> None:
    usual: dict[str, Any] = {
        "by": [],
        "html": None,
        "figures": None,
        "format": "table",
        "fail_on": [],
        "rules": None,
    }
    assert call("report", "a", "b/c", *arguments) == Answer(0, "text", "")
    assert reported.paths == [Path("a"), Path("b/c")]
    assert reported.given == usual | expected


@pytest.mark.parametrize("code", [0, 1])
def test_a_report_leaves_stdout_to_the_output_and_comes_back_with_its_code(
    reported: Reported, code: int
) -> None:
    reported.outcome = Outcome("a,b\n1,2\n", ["one thing", "another [b]thing[/b]"], code)
    expected = Answer(code, "a,b\n1,2\n", "one thing\nanother [b]thing[/b]\n")
    assert call("report", "a") == expected
    reported.outcome = Outcome(Text("a table " * 40), ["said"], code)
    assert call("report", "a") == Answer(code, "a table " * 40 + "\n", "said\n")


def test_a_report_of_real_runs(sick: Path) -> None:
    assert call("report", sick, "--fail-on", "dying").exit_code == 0
    failed = call("report", sick, "--fail-on", "dying,vanishing", "--format", "csv")
    assert failed.exit_code == 1
    assert failed.stderr.splitlines() == [
        "1 run in 1 cell: 1 finished.",
        "--fail-on: deep: vanishing (critical)",
    ]
    (row,) = csv.DictReader(io.StringIO(failed.stdout))
    assert row["verdict"] == "vanishing"


# --- list, show, schema, and the program itself ---

CLIPS = """\
clip   options                 what it is
none                           Gradients reach the optimizer as they are.
norm   max_norm: float = 1.0   Scale all gradients together so that their total L2 norm is at most max_norm. (Pascanu et al. 2013)
value  max_value: float = 1.0  Limit each entry of each gradient to [-max_value, max_value].
"""  # noqa: E501  nothing is wrapped


def test_a_kind_is_listed_with_options_words_and_sources() -> None:
    answer = call("list", "clips")
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.lines == CLIPS.splitlines()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("inits", "kaiming_normal   mode: fan_in or fan_out = fan_in  Normal with std"),
        ("inits", " Also: he_normal."),
        ("datasets", "mnist          root: text or null = null     28x28"),
        ("datasets", "               verify: true or false = true"),
        ("schedules", "step      milestones: list = (0.5, 0.75)  Times gamma"),
        ("schedules", "          gamma: float = 0.1\n"),
        ("models", "mlp           depth: int = 5         Fully connected"),
        ("models", "(torchvision.models)\n"),
        ("rules", "share: float = 0.5"),
        ("probes", "\nunits "),
    ],
)
def test_options_are_shown_as_users_write_them(kind: str, said: str) -> None:
    assert said in "\n".join([*call("list", kind).lines, ""])


def test_all_kinds_are_listed_with_their_names() -> None:
    lines = call("list").lines
    assert lines[0].split() == ["kind", "parts"]
    listed = dict(re.split(r"\s{2,}", line) for line in lines[1:])
    assert list(listed)[-2:] == ["probes", "rules"]
    assert listed["clips"] == "none, norm, value"
    assert listed["schedules"] == "constant, cosine, step"


LAYERS = """\
# layer    kind   fan_in fan_out units parameters activation norm
1 hidden.1 linear     64   1,100 1,100     71,500 relu       none
2 hidden.2 linear  1,100   1,100 1,100  1,211,100 relu       none
3 readout  linear  1,100      10    10     11,010 none       none
1,293,610 parameters"""


def test_show_is_a_config_that_repeats_the_run_and_a_table_of_layers(
    tiny: Path, here: Path
) -> None:
    settings = ["--set", "model.depth=2", "--set", "model.width=1100"]
    answer = call("show", tiny, *settings)
    assert (answer.exit_code, answer.stderr) == (0, "")
    text, _, table = answer.stdout.partition("\n\n")
    assert [line.rstrip() for line in table.splitlines()] == LAYERS.splitlines()
    assert not (here / "runs").exists()
    (here / "shown.yaml").write_text(text)
    assert yaml.safe_load(call("show", "shown.yaml").stdout.partition("\n\n")[0]) == (
        yaml.safe_load(text)
    )
    assert yaml.safe_load(text)["model"]["width"] == 1100


LONG = """
name: long
data: {dataset: digits}
model: {family: torchvision, name: mobilenet_v3_small}
train: {steps: 1}
"""
LONGEST = "features.11.block.2.fc1"


def test_nothing_is_cut_off_and_without_a_terminal_nothing_wrapped(
    here: Path, terminal: Terminal
) -> None:
    (here / "long.yaml").write_text(LONG)
    call("show", "long.yaml", width=60, stdout=terminal)
    assert "…" not in terminal.getvalue()
    assert max(map(len, terminal.seen)) <= 60
    lines = call("show", "long.yaml", width=60).lines
    (layer,) = (line.split() for line in lines if LONGEST in line)
    assert layer[1:] == [LONGEST, "pointwise", "576", "144", "144", "83,088", "relu", "none"]


def test_the_schema_has_every_block_that_of_a_sweep_too() -> None:
    answer = call("schema")
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout.startswith('{\n  "')
    schema = json.loads(answer.stdout)
    assert {"name", "seed", "data", "model", "train", "probe", "sweep"} <= set(schema["properties"])
    text = json.dumps(schema["properties"]["sweep"]) + json.dumps(schema["$defs"])
    for key in ("grid", "seeds", "exclude", "include", "max_norm"):
        assert f'"{key}"' in text


def test_the_version() -> None:
    assert call("--version") == Answer(0, f"{gradexp.__version__}\n", "")


def test_without_a_command_the_help_is_shown() -> None:
    answer = call()
    text = answer.stdout + answer.stderr
    assert "Usage: " in text
    for command in ("run", "sweep", "status", "report", "list", "show", "schema"):
        assert f" {command} " in text


@pytest.mark.parametrize("command", ["run", "sweep", "status", "report", "show"])
def test_what_a_command_needs_is_asked_for(command: str) -> None:
    answer = call(command)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert "Missing argument" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0"], "--seeds"),
        (["--workers", "0"], "--workers"),
        (["--engine", "slurm"], "--engine"),
        (["--fresh"], "--fresh"),
    ],
)
def test_an_option_out_of_range_is_wrong_input(
    tiny: Path, asked: Asked, arguments: list[str], said: str
) -> None:
    answer = call("sweep", tiny, *arguments)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert said in answer.stderr
    assert asked.plan is None


ENTRANCES = {
    "run": "gradexp.cli.running.run_config",
    "sweep": "gradexp.sweeps.plan_sweep",
    "status": "gradexp.cli.sweeping.show_status",
    "report": "gradexp.report.make_report",
    "list": "gradexp.cli.listing.listing",
    "show": "gradexp.config.load_config",
    "schema": "gradexp.sweeps.schema.schema_with_sweep",
}
ARGUMENTS = {"list": [], "schema": []}


@pytest.fixture(params=ENTRANCES)
def raising(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], list[BaseException]]:
    """A command, and the error that what it calls will raise."""
    error: list[BaseException] = []

    def raise_it(*_: Any, **__: Any) -> None:
        raise error[0]

    monkeypatch.setattr(ENTRANCES[request.param], raise_it)
    return [request.param, *ARGUMENTS.get(request.param, ["a"])], error


@pytest.mark.parametrize(("error", "code"), [(RunError, 1), (ConfigError, 2), (DataError, 2)])
def test_errors_are_a_message_on_stderr_and_a_code(
    raising: tuple[list[str], list[BaseException]], error: type[Exception], code: int
) -> None:
    command, raised = raising
    raised.append(error("where: [b]what[/b]"))
    assert call(*command) == Answer(code, "", "where: [b]what[/b]\n")


def test_a_fault_of_the_program_is_not_hidden(
    raising: tuple[list[str], list[BaseException]], capsys: pytest.CaptureFixture[str]
) -> None:
    command, raised = raising
    raised.append(ZeroDivisionError("a fault"))
    with pytest.raises(ZeroDivisionError, match="a fault") as caught:
        call(*command)
    sys.excepthook(caught.type, caught.value, caught.tb)
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):\n")  # as any program shows it
    assert shown.endswith("ZeroDivisionError: a fault\n")
