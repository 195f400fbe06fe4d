"""What is said of a run that goes on, has ended or was done already, and of wrong input."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradexp.config import load_config
from gradexp.records import RunDir
from gradexp.train import execute
from tests.conftest import StopAt
from tests.fabricated_runs import Fabricated
from tests.terminals import Answer, call


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command is called in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_of(answer: Answer) -> RunDir:
    assert answer.exit_code == 0, answer.stderr
    return RunDir(Path(answer.lines[-1]))


def epoch_lines(run: RunDir, total: int) -> list[str]:
    """What is said at the end of every epoch, by its row on disk."""
    return [
        f"epoch {row.epoch}, step {row.step}/{total}, "
        f"loss {row.train_loss:.4g}, accuracy {100 * row.train_accuracy:.1f}%, "
        f"test loss {row.test_loss:.4g}, accuracy {100 * row.test_accuracy:.1f}%"
        for row in run.read("epochs").itertuples()
    ]


def test_a_run_tells_what_begins_and_how_every_epoch_went(tiny: Path) -> None:
    answer = call("run", tiny)
    lines = epoch_lines(run_of(answer), 12)
    assert len(lines) == 2  # 256 examples by 32 are 8 steps
    assert answer.stderr.splitlines() == ["tiny: 4 layers, 12 steps", *lines]


def test_a_run_that_goes_on_says_from_where_and_leaves_the_same(tiny: Path, here: Path) -> None:
    config = load_config(tiny)
    with pytest.raises(KeyboardInterrupt):
        execute(config, here / "runs", observer=StopAt(5))  # a chunk ends with the probe at 8
    answer = call("run", tiny)
    *_, said = answer.stderr.splitlines()
    assert said == "this run went on from step 4"
    undisturbed = call("run", tiny, "--out", "elsewhere")
    assert "went on" not in undisturbed.stderr
    assert answer.lines[:-1] == undisturbed.lines[:-1]


def test_a_run_that_cannot_go_on_says_why_and_leaves_the_same(tiny: Path, here: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        execute(load_config(tiny), here / "runs", observer=StopAt(5))
    [steps] = (here / "runs").glob("*/steps.csv")
    steps.write_text(steps.read_text().replace(",", ";", 1))
    answer = call("run", tiny)
    *_, said = answer.stderr.splitlines()
    assert said == "this run began anew: steps.csv is not what it was at the checkpoint"
    assert answer.lines[:-1] == call("run", tiny, "--out", "elsewhere").lines[:-1]


def test_a_run_that_was_finished_says_so_and_is_shown_again(tiny: Path) -> None:
    first, again = call("run", tiny), call("run", tiny)
    assert again.stdout == first.stdout
    assert again.stderr == "this run was finished already; --fresh begins it anew\n"
    assert "already" not in first.stderr


def test_a_run_ends_with_its_layers_the_reading_verdicts_and_its_place(tiny: Path) -> None:
    answer = call("run", tiny, "--out", "a [b] folder")
    table, reading, verdicts, place = answer.stdout.split("\n\n")
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == [
        *(f"hidden.{i}" for i in (1, 2, 3)),
        "readout",
    ]
    assert [line.split()[1] for line in lines[2:6]] == ["16", "16", "16", "10"]
    said, data = reading.splitlines()
    assert said.startswith("4 layers (relu) reached training accuracy ")
    assert "12 steps (chance 10 %). Healthy:" in said
    assert data == "Data: 256 of 1,442 training examples."
    assert verdicts.startswith("healthy  No rule raised an alarm")
    assert re.fullmatch(r"a \[b\] folder/tiny-\w{10}\n", place)


def test_of_whole_data_there_is_nothing_to_say(tiny: Path) -> None:
    answer = call("run", tiny, "--set", "data.train_examples=null", "--set", "train.steps=2")
    assert answer.exit_code == 0
    assert "Data:" not in answer.stdout


def test_where_finite_values_ended_is_said_after_the_reading(tiny: Path) -> None:
    answer = call("run", tiny, "--set", "train.optimizer.lr=1e18")
    summary = run_of(answer).read_summary()["nonfinite"]
    reading, sentence, data = answer.stdout.split("\n\n")[1].splitlines()
    assert " diverged at step " in reading
    assert sentence == (
        f"diverged at step {summary['step']}; the {summary['tensor']} of {summary['layer']} is the "
        f"first that is not finite, at step {summary['step']}"
    )
    assert data == "Data: 256 of 1,442 training examples."


def test_a_run_whose_values_stay_finite_has_no_such_sentence(tiny: Path) -> None:
    answer = call("run", tiny)
    assert run_of(answer).read_manifest()["outcome"] == "finished 12 steps"
    assert "finished" not in answer.stdout
    assert "finite" not in answer.stdout


# --- wrong input ---

WRONG = """
name: wrong
data: {dataset: digits}
model:
  family: mlp
  depht: 3
  activation: rellu
train: {steps: 1, optimizer: {name: sgd, lr: fast}}
"""


def refused(answer: Answer, code: int = 2) -> list[str]:
    """What was said; nothing goes to stdout, and no traceback anywhere."""
    assert (answer.exit_code, answer.stdout) == (code, "")
    assert "Traceback" not in answer.stderr
    return answer.stderr.splitlines()


@pytest.mark.parametrize("command", ["run", "show"])
def test_every_mistake_of_a_file_is_said_at_once(here: Path, command: str) -> None:
    (here / "wrong.yaml").write_text(WRONG)
    lines = refused(call(command, "wrong.yaml"))
    said = {line.split("  ")[0]: line for line in lines}
    assert said.keys() == {"wrong.yaml:6", "wrong.yaml:7", "wrong.yaml:8"}
    assert "model.depht: unknown key; allowed: " in said["wrong.yaml:6"]
    assert said["wrong.yaml:6"].endswith(" Did you mean 'depth'?")
    assert "model.activation: got 'rellu'; allowed: identity, sigmoid, tanh" in said["wrong.yaml:7"]
    assert said["wrong.yaml:7"].endswith(" Did you mean 'relu'?")
    assert "train.optimizer.lr: should be a valid number" in said["wrong.yaml:8"]
    assert said["wrong.yaml:8"].endswith(", got 'fast'")


def test_a_mistake_on_the_command_line_is_said_with_the_option(tiny: Path) -> None:
    (line,) = refused(call("run", tiny, "--set", "model.depth=0"))
    assert line.startswith("--set model.depth=0  model.depth: should be ")
    assert line.endswith(", got 0")


GRID = "expected KEY=V1,V2, like model.depth=5,10,20"
FORMATS = "is not allowed; allowed: table, csv, markdown, json, latex."
KINDS = (
    "allowed: activations, augmentations, clips, datasets, inits, models, norms, optimizers, "
    "residuals, schedules, probes, rules."
)
MANY = "grid.yaml:7  sweep: describes many runs; use `gradexp sweep grid.yaml`"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "no.yaml"], "no.yaml: cannot be read: No such file or directory"),
        (["run", "tiny.yaml", "--set", "a"], "--set a: expected KEY=VALUE, like model.depth=10"),
        (["sweep", "tiny.yaml", "--grid", "a"], f"--grid a: {GRID}"),
        (["run", "grid.yaml"], MANY),
        (["report", "no"], "no: no such directory; give a run or a sweep directory"),
        (["report", "done", "--format", "cvs"], f"--format: 'cvs' {FORMATS} Did you mean 'csv'?"),
        (["list", "clip"], f"unknown kind 'clip'; {KINDS} Did you mean 'clips'?"),
        (["list", "xyzzy"], f"unknown kind 'xyzzy'; {KINDS}"),
    ],
)
def test_wrong_input_is_said_in_one_line(
    tiny: Path, here: Path, arguments: list[str], line: str
) -> None:
    (here / "grid.yaml").write_text(tiny.read_text() + "sweep: {seeds: 2}\n")
    if "done" in arguments:
        Fabricated().write(here / "done")
    answer = call(*arguments)
    assert refused(answer) == [line]


def test_a_folder_that_is_no_sweep_is_named(here: Path) -> None:
    assert here.is_dir()
    answer = call("status", "nowhere")
    line = "nowhere: no such directory; give a sweep or a run directory"
    assert refused(answer) == [line]
    (here / "folder").mkdir()
    answer = call("status", "folder")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert answer.stderr == "folder: is not a sweep directory (no plan.csv)\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--by", "dept"], "Did you mean 'depth'?"),
        (["--fail-on", "dieing"], "Did you mean 'dying'?"),
        (["--rules", "no.yaml"], "no.yaml"),
    ],
)
def test_a_report_of_something_unknown_is_wrong_input(
    here: Path, arguments: list[str], said: str
) -> None:
    Fabricated().write(here / "done")
    assert said in "\n".join(refused(call("report", "done", *arguments)))


def test_a_run_that_cannot_write_has_failed(tiny: Path, here: Path) -> None:
    (here / "runs").write_text("a file")
    (line,) = refused(call("run", tiny), 1)
    assert "cannot be written" in line
