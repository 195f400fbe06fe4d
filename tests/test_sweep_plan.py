"""The plan of a sweep: axes, replicates, exclusions; mistakes are named before anything runs."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from gradexp.config import load_config, run_id
from gradexp.errors import ConfigError
from gradexp.records import RunDir
from gradexp.sweep import Plan, plan_sweep, plan_table
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


def test_ten_thousand_cells_are_planned_quickly(tmp_path: Path) -> None:
    began = time.monotonic()
    assert len(_plan(tmp_path, "", "model.depth=1,2,3,4,5", seeds=2000).cells) == 10_000
    assert time.monotonic() - began < 10


def test_planning_does_not_import_torch() -> None:
    program = "import sys, gradexp.sweep; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def _estimated(config: Path, *grid: str) -> str:
    """What a dry run says below its table; nothing must be written."""
    console = Console(width=300, file=io.StringIO())
    before = sorted(config.parent.rglob("*"))
    console.print(plan_table(plan_sweep(config, [], grid), config.parent / "out", 1))
    assert sorted(config.parent.rglob("*")) == before
    return console.file.getvalue().splitlines()[-1]


def test_a_fresh_sweep_is_estimated_from_the_first_steps_of_a_few_cells(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    said = _estimated(config, "model.depth=2,3,4,5", "train.steps=100000000")
    assert "4 cells, 4 to run with 1 at a time; about " in said
    assert re.search(r"about \d+ h .*, an estimate from the first steps of 3 cells", said)


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
