"""The plan of a sweep: axes, replicates, exclusions; mistakes are named before anything runs."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from gradexp.config import Config, Source, load_config, resolve, run_id
from gradexp.errors import ConfigError
from gradexp.records import RunDir
from gradexp.sweeps import Plan, plan_sweep, plan_table
from gradexp.sweeps.axes import described, value_text
from gradexp.sweeps.schema import Resources
from tests.sweeps import write_config

BASE = """\
name: tiny
data: {dataset: digits}
model: {family: mlp, depth: 3, width: 8}
train: {steps: 5}
"""


def _plan(tmp_path: Path, sweep: str = "", *grid: str, seeds: int | None = None) -> Plan:
    path = tmp_path / "tiny.yaml"
    path.write_text(BASE + sweep)
    return plan_sweep(path, [], grid, seeds)


def _values(plan: Plan) -> list[tuple[str, ...]]:
    return [tuple(cell.axes.values()) for cell in plan.cells]


def _error(tmp_path: Path, sweep: str = "", *grid: str, seeds: int | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        _plan(tmp_path, sweep, *grid, seeds=seeds)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_a_grid_is_every_combination_in_the_order_of_the_file(tmp_path: Path) -> None:
    plan = _plan(
        tmp_path, "sweep: {grid: {model.activation: [relu, tanh], model.depth: [2, 3]}, seeds: 2}"
    )
    assert plan.axes == ("model.activation", "model.depth")
    assert _values(plan)[::2] == [("relu", "2"), ("relu", "3"), ("tanh", "2"), ("tanh", "3")]
    assert [cell.config.seed for cell in plan.cells] == [0, 1] * 4


def test_a_cell_is_the_run_that_its_settings_give_alone(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "", "model.depth=2,4", seeds=2)
    (tmp_path / "alone.yaml").write_text(BASE)
    alone = load_config(tmp_path / "alone.yaml", ["model.depth=4", "seed=1"])
    assert plan.cells[3].id == run_id(alone)
    assert plan.cells[3].run == f"tiny-{run_id(alone)}"


def test_an_axis_moves_several_keys_together(tmp_path: Path) -> None:
    sweep = "sweep: {grid: {'model.depth, train.optimizer.lr': [[2, 0.1], [9, 0.01]]}}"
    plan = _plan(tmp_path, sweep, "seed=3,4")
    assert plan.axes == ("model.depth", "train.optimizer.lr")
    assert _values(plan)[::2] == [("2", "0.1"), ("9", "0.01")]
    assert plan.cells[-1].config.train.optimizer.lr == 0.01
    assert plan.cells[-1].config.seed == 4


def test_the_command_line_adds_and_replaces_axes(tmp_path: Path) -> None:
    sweep = "sweep: {grid: {model.depth: [2, 3]}, seeds: 3}"
    plan = _plan(tmp_path, sweep, "model.depth=5", "model.norm=none,batch", seeds=1)
    assert _values(plan) == [("5", "none"), ("5", "batch")]


def test_excluded_and_included_rows(tmp_path: Path) -> None:
    plan = _plan(
        tmp_path,
        """\
sweep:
  grid: {model.activation: [relu, tanh], model.depth: [2, 3]}
  exclude: [{model.activation: tanh, model.depth: 3}]
  include: [{model.activation: selu, model.init: lecun_normal}]
""",
    )
    assert plan.axes == ("model.activation", "model.depth", "model.init")
    assert _values(plan)[-2:] == [("tanh", "2", "kaiming_normal"), ("selu", "3", "lecun_normal")]
    assert len(plan.cells) == 4


def test_two_ways_to_say_the_same_run_are_one_cell(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "", "model.activation=relu,{name: relu},tanh")
    assert _values(plan) == [("relu",), ("tanh",)]


def test_a_part_with_options_is_an_axis_value(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "", "model.activation=elu,{name: leaky_relu, negative_slope: 0.2}")
    assert plan.cells[1].config.model.activation.negative_slope == 0.2


def test_the_written_sweep_plans_the_same_cells(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "sweep: {grid: {model.depth: [2, 3]}, seeds: 2}", "seed=7,8", seeds=1)
    again = tmp_path / "sweep.yaml"
    again.write_text(plan.text)
    assert plan_sweep(again).cells == plan.cells


def test_every_mistake_of_every_cell_is_said_once(tmp_path: Path) -> None:
    sweep = """\
sweep:
  grid:
    model.activation: [relu, relo]
    model.depth:
      - 2
      - deep
    model.widht: [8]
"""
    lines = _error(tmp_path, sweep).splitlines()
    assert len(lines) == 3
    assert "tiny.yaml:11  model.widht: unknown key" in lines[0]
    assert "Did you mean 'width'?" in lines[0]
    assert "tiny.yaml:10  model.depth: " in lines[1]
    assert "(in cell model.activation=relu model.depth=deep" in lines[1]
    assert "tiny.yaml:7  model.activation: got 'relo'" in lines[2]
    assert "Did you mean 'relu'?" in lines[2]


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ("", "tiny.yaml: has no `sweep:` block"),
        ("sweep: {gird: {}}", "sweep.gird: unknown key; allowed: exclude, grid,"),
        ("sweep: {gird: {}}", "Did you mean 'grid'?"),
        ("sweep: {grid: {model.depth: 5}}", "tiny.yaml:5  sweep.grid.model.depth: "),
        ("sweep: {grid: {model.depth: []}}", "at least 1 item"),
        ("sweep: {seeds: 0}", "sweep.seeds: "),
        ("sweep: {seeds: 2, grid: {seed: [1, 2]}}", "seed is an axis and sweep.seeds is given"),
        ("sweep: {grid: {'model.depth, seed': [[1]]}}", "a list of 2, one for each key; got [1]"),
        ("sweep: {grid: {model.depth: [2], 'model.depth, seed': [[1, 2]]}}", "two axes move"),
        ("sweep: {grid: {name: [a, b]}}", "'name' cannot be an axis"),
        ("sweep: {grid: {model.depth: [2]}, exclude: [{model.dept: 2}]}", "'model.depth'?"),
        ("sweep: {grid: {model.depth: [2]}, exclude: [{model.depth: 3}]}", "nothing is excluded"),
        ("sweep: {grid: {model.depth: [2]}, exclude: [{model.depth: 2}]}", "nothing is left"),
        ("sweep: {resources: {cpus: 0}}", "sweep.resources.cpus: "),
    ],
)
def test_a_wrong_block_says_where_and_what(tmp_path: Path, sweep: str, said: str) -> None:
    assert said in _error(tmp_path, sweep)


def test_a_wrong_option_says_which(tmp_path: Path) -> None:
    assert "--grid model.depth: expected KEY=V1,V2" in _error(tmp_path, "", "model.depth")
    assert "--grid model.depth=2,x" in _error(tmp_path, "", "model.depth=2,x")


def test_a_mistake_of_the_base_config_is_not_blamed_on_a_cell(tmp_path: Path) -> None:
    said = _error(tmp_path, "trian: {}\nsweep: {grid: {model.depth: [2, 3]}}")
    assert said.count("trian") == 1
    assert "in cell" not in said


def test_rows_stand_beside_a_grid_or_alone(tmp_path: Path) -> None:
    rows = "[{model.depth: 9, seed: 5}, {model.activation: tanh}]"
    plan = _plan(tmp_path, f"sweep: {{include: {rows}}}")
    assert plan.axes == ("model.depth", "model.activation")
    assert _values(plan) == [("9", "relu"), ("3", "tanh")]
    assert [cell.config.seed for cell in plan.cells] == [5, 0]
    plan = _plan(tmp_path, f"sweep: {{grid: {{model.depth: [2]}}, include: {rows}}}")
    assert _values(plan) == [("2", "relu"), ("9", "relu"), ("3", "tanh")]


def test_every_excluded_row_leaves_out_all_that_have_its_values(tmp_path: Path) -> None:
    grid = "{model.activation: [relu, tanh, elu], model.depth: [2, 3]}"
    exclude = "[{model.activation: tanh}, {model.depth: 2, model.activation: relu}]"
    plan = _plan(tmp_path, f"sweep: {{grid: {grid}, exclude: {exclude}}}")
    assert _values(plan) == [("relu", "3"), ("elu", "2"), ("elu", "3")]


def test_seeds_alone_make_a_sweep_and_count_from_that_of_the_config(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "seed: 7\n", seeds=3)
    assert plan.axes == ()
    assert [cell.config.seed for cell in plan.cells] == [7, 8, 9]
    assert [str(cell) for cell in plan.cells] == ["seed=7", "seed=8", "seed=9"]
    assert plan.cells[0].row() == {
        "seed": "7",
        "id": plan.cells[0].id,
        "run": f"tiny-{plan.cells[0].id}",
    }


def test_a_sweep_without_anything_is_one_cell(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "sweep: {}")
    assert (plan.name, plan.axes, len(plan.cells)) == ("tiny", (), 1)
    assert plan.resources == Resources(cpus=1, gpus=0.0)


def test_resources_and_overrides_belong_to_the_plan(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(BASE + "sweep: {resources: {cpus: 2, gpus: 0.5}}")
    plan = plan_sweep(tmp_path / "tiny.yaml", ["train.steps=9", "name=other"], ["model.depth=2"])
    assert plan.resources == Resources(cpus=2, gpus=0.5)
    assert plan.name == "other"
    [cell] = plan.cells
    assert (cell.config.train.steps, cell.run) == (9, f"other-{cell.id}")
    (tmp_path / "sweep.yaml").write_text(plan.text)
    assert plan_sweep(tmp_path / "sweep.yaml").resources == plan.resources


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("relu", "relu"),
        (0.1, "0.1"),
        (5, "5"),
        (None, "null"),
        (True, "true"),
        ({"name": "elu"}, "elu"),
        ({"name": "elu", "alpha": 2}, '{"name": "elu", "alpha": 2}'),
        ({"alpha": 2}, '{"alpha": 2}'),
        ([1, "a"], '[1, "a"]'),
    ],
)
def test_values_as_tables_and_messages_show_them(value: object, text: str) -> None:
    assert value_text(value) == text
    assert described({"a.b": value, "c": 1}) == f"a.b={text} c=1"


def test_what_a_row_leaves_open_is_shown_as_the_config_has_it(tmp_path: Path) -> None:
    """A part by its name, an option that the net does not have not at all."""
    include = "[{model.family: cnn, model.stages: 2}, {model.norm: batch, model.depth: 4}]"
    sweep = f"sweep: {{grid: {{model.depth: [2]}}, include: {include}}}"
    plan = _plan(tmp_path, sweep)
    assert plan.axes == ("model.depth", "model.family", "model.stages", "model.norm")
    assert _values(plan) == [
        ("2", "mlp", "", "none"),
        ("3", "cnn", "2", "none"),
        ("4", "mlp", "", "batch"),
    ]


@pytest.mark.parametrize("text", ["model.depth", "model.depth=", "=2,3"])
def test_a_half_grid_is_refused(text: str, tmp_path: Path) -> None:
    assert _error(tmp_path, "", text) == (
        f"--grid {text}: expected KEY=V1,V2, like model.depth=5,10,20"
    )


def test_mistakes_say_where_they_were_made(tmp_path: Path) -> None:
    assert _error(tmp_path, "", "model.depth=0,2").startswith("--grid model.depth=0,2  model.depth")
    assert _error(tmp_path, "", seeds=0).startswith("--seeds 0  sweep.seeds: ")
    assert _error(tmp_path, "", "sweep.seeds=2").endswith("'sweep.seeds' cannot be an axis")
    assert _error(tmp_path, "", "model.depth,=2").endswith("'' cannot be an axis")
    sweep = "sweep:\n  include:\n    - {model.depth: 2}\n    - {model.depth: deep}\n"
    assert _error(tmp_path, sweep).startswith("tiny.yaml:8  model.depth: ")


def test_a_mistake_names_the_first_of_its_cells_and_counts_the_rest(tmp_path: Path) -> None:
    said = _error(tmp_path, "", "model.depth=2,0", "model.norm=none,batch,layer")
    assert said.endswith("(in cell model.depth=0 model.norm=none and 2 more)")
    said = _error(tmp_path, "", "model.depth=2,0", "model.norm=none")
    assert said.endswith("(in cell model.depth=0 model.norm=none)")
    assert "in cell" in _error(tmp_path, "", "model.depth=0")


def test_a_wrong_file_of_limits_is_said_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "limits.yaml").write_text("vanishing: {decade: 4}\n")
    said = _error(tmp_path, "rules: limits.yaml\n", "model.depth=2")
    assert "limits.yaml" in said
    assert "decade" in said


def test_a_keyword_that_no_cell_has_is_not_excluded(tmp_path: Path) -> None:
    sweep = "sweep: {grid: {model.depth: [2]}, exclude: [{model.dept: 2}]}"
    said = _error(tmp_path, sweep)
    assert "model.dept is not an axis of the grid; allowed: model.depth. Did you mean" in said


def test_replicates_are_planned_without_checking_their_settings_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that ten thousand cells are planned in a moment."""
    resolved: list[Source] = []

    def noted(source: Source, folder: Path) -> Config:
        resolved.append(source)
        return resolve(source, folder)

    monkeypatch.setattr("gradexp.sweeps.plan.resolve", noted)
    plan = _plan(tmp_path, "", "model.depth=1,2,3,4,5", seeds=200)
    assert len(plan.cells) == len({cell.run for cell in plan.cells}) == 1000
    assert len(resolved) == 5


def test_planning_does_not_import_torch() -> None:
    program = "import sys, gradexp.sweeps; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def _estimated(config: Path, *grid: str) -> str:
    """What a dry run says below its table; nothing must be written."""
    console = Console(width=300, file=io.StringIO())
    before = sorted(config.parent.rglob("*"))
    console.print(plan_table(plan_sweep(config, [], grid), config.parent / "out", 1))
    assert sorted(config.parent.rglob("*")) == before
    return console.file.getvalue().splitlines()[-1]


@pytest.mark.usefixtures("forks")
def test_a_fresh_sweep_is_estimated_from_the_first_steps_of_a_few_cells(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    endless = ("train.steps=100000000", "probe.every=50000000")
    said = _estimated(config, "model.depth=2,3,4,5", *endless)
    assert "4 cells, 4 to run with 1 at a time; about " in said
    assert re.search(r"about \d+ h .*, an estimate from the first steps of 3 cells", said)


@pytest.mark.usefixtures("forks")
def test_a_cell_that_cannot_be_tried_leaves_no_estimate(tmp_path: Path) -> None:
    said = _estimated(write_config(tmp_path), "data.mode=error")
    assert "1 cells, 1 to run with 1 at a time; no estimate of time: cell data.mode=error" in said
    assert "ValueError: this cell is meant to fail" in said


def test_cells_that_are_done_tell_what_their_other_seeds_take(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    grid = ("model.depth=2,3", "seed=0,1,2,3")
    for cell in plan_sweep(config, [], grid).cells[::4]:
        run = RunDir(tmp_path / "out" / "runs" / cell.run)
        run.path.mkdir(parents=True)
        run.write_manifest({"status": "finished", "seconds": 60 * int(cell.axes["model.depth"])})
        run.write_summary({"steps": 1})
    assert "about 15 min 0 s, an estimate from 2 cells that are done" in _estimated(config, *grid)
