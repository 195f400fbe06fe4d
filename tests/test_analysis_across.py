"""Many runs: finding them, grouping them, statistics over seeds, honest comparisons."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradexp.analysis import (
    Collection,
    Comparison,
    collect,
    compare,
    degradation,
    find_axes,
    into_cells,
    resolve_axes,
    short_names,
)
from gradexp.analysis.cells import summarize
from gradexp.analysis.comparisons import holm
from gradexp.errors import ConfigError, RunError
from tests.fabricated_runs import Fabricated


def sweep(path: Path, accuracy: dict[tuple[str, int], list[float]]) -> Collection:
    """One run per activation, depth and seed that ends at the given training accuracy."""
    for (activation, depth), values in accuracy.items():
        for seed, end in enumerate(values):
            Fabricated(
                activation=activation,
                depth=depth,
                steps=20,
                probes=2,
                accuracy=(0.1, end),
                config={"seed": seed, "name": f"{activation}-{depth}"},
            ).write(path / "runs" / f"{activation}-{depth}-{seed}")
    return collect([path])


def test_runs_are_found_at_any_level_and_once(tmp_path: Path) -> None:
    sweep(tmp_path / "a", {("relu", 3): [0.9, 0.8]})
    Fabricated(steps=8).write(tmp_path / "b")
    assert len(collect([tmp_path]).runs) == 3
    assert len(collect([tmp_path, tmp_path / "b", tmp_path / "a" / "runs"]).runs) == 3
    assert len(collect([tmp_path / "a" / "runs" / "relu-3-0"]).runs) == 1


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run directory here or below"):
        collect([tmp_path])
    with pytest.raises(ConfigError, match="no such directory"):
        collect([tmp_path / "nowhere"])


def test_damaged_and_empty_runs_are_named_and_left_out(tmp_path: Path) -> None:
    Fabricated(steps=8).write(tmp_path / "good")
    damaged = Fabricated(steps=8).write(tmp_path / "damaged")
    damaged.table_path("steps").write_text("step,epoch\n1,what\n")
    empty = Fabricated(steps=8).write(tmp_path / "empty")
    empty.table_path("layers").unlink()
    found = collect([tmp_path])
    assert [run.directory.name for run in found.runs] == ["good"]
    assert len(found.unreadable) == 2
    assert any("damaged" in reason for reason in found.unreadable)
    assert any("observed nothing yet" in reason for reason in found.unreadable)


def test_axes_are_the_keys_that_differ_but_seed_name_and_device(tmp_path: Path) -> None:
    accuracy = {("relu", 3): [0.9, 0.9], ("tanh", 3): [0.9, 0.9], ("relu", 5): [0.9, 0.9]}
    runs = sweep(tmp_path, accuracy).runs
    assert find_axes(runs) == ["model.activation", "model.depth"]


def test_an_option_of_a_part_that_is_an_axis_is_left_out(tmp_path: Path) -> None:
    for slope in (0.0, 0.1):
        for name in ("relu", "leaky_relu"):
            model: dict[str, Any] = {"activation": {"name": name}}
            if name == "leaky_relu":
                model["activation"]["negative_slope"] = 0.2
            config = {"model": model, "train": {"l1": slope}}
            Fabricated(steps=8, config=config).write(tmp_path / f"{name}{slope}")
    assert find_axes(collect([tmp_path]).runs) == ["model.activation", "train.l1"]


def test_short_names_stay_unambiguous() -> None:
    names = short_names(["model.depth", "train.optimizer.lr", "train.schedule.lr"])
    assert names == {
        "model.depth": "depth",
        "train.optimizer.lr": "optimizer.lr",
        "train.schedule.lr": "schedule.lr",
    }


def test_by_takes_the_end_of_a_key(tmp_path: Path) -> None:
    runs = sweep(tmp_path, {("relu", 3): [0.9]}).runs
    assert resolve_axes(["depth", "model.activation"], runs) == ["model.depth", "model.activation"]
    with pytest.raises(ConfigError, match="Did you mean 'depth'"):
        resolve_axes(["dept"], runs)


def test_cells_follow_the_order_of_numbers(tmp_path: Path) -> None:
    runs = sweep(tmp_path, {("relu", depth): [0.9] for depth in (10, 2, 5)}).runs
    cells = into_cells(runs, ["model.depth"])
    assert [cell.axes["model.depth"] for cell in cells] == [2, 5, 10]


def test_statistics_of_a_cell(tmp_path: Path) -> None:
    runs = sweep(tmp_path, {("relu", 3): [0.5, 0.6, 0.9]}).runs
    (cell,) = into_cells(runs, find_axes(runs))
    statistic = cell.statistics["train_accuracy"]
    assert statistic.count == 3
    assert statistic.median == pytest.approx(0.6)
    assert 0.5 <= statistic.low < statistic.median < statistic.high <= 0.9
    assert cell.statistics["saturated_fraction"].count == 3
    assert cell.statistics["dead_fraction"].median == 0


@settings(deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(2, 6)), elements=st.floats(-1, 1))
)
def test_intervals_lie_within_what_was_observed(values: np.ndarray) -> None:
    for row, statistic in zip(values, summarize(values), strict=True):
        rounding = 1e-12
        assert row.min() - rounding <= statistic.low <= statistic.median + rounding
        assert statistic.median - rounding <= statistic.high <= row.max() + rounding
        assert statistic.q1 in row
        assert statistic.q3 in row


def test_statistics_are_the_same_every_time() -> None:
    values = np.random.default_rng(0).normal(size=(4, 5))
    assert summarize(values) == summarize(values)


def test_infinite_and_missing_values_have_no_interval() -> None:
    diverged, alone, none = (
        summarize(np.array([[1.0, math.inf, math.inf]]))[0],
        summarize(np.array([[0.5]]))[0],
        summarize(np.empty((1, 0)))[0],
    )
    assert diverged.median == math.inf
    assert math.isnan(diverged.low)
    assert alone.median == 0.5
    assert math.isnan(alone.low)
    assert none.count == 0


def test_a_cell_is_called_by_the_verdict_of_most_runs(tmp_path: Path) -> None:
    for seed in range(3):
        lost = {"loss": (2.31, 2.3), "accuracy": (0.1, 0.1), "decay": 0.6} if seed else {}
        config = {"seed": seed}
        Fabricated(depth=12, config=config, **lost).write(tmp_path / str(seed))
    (cell,) = into_cells(collect([tmp_path]).runs, [])
    assert cell.verdicts == {"vanishing": 2, "healthy": 1}
    assert (cell.verdict, cell.level) == ("vanishing", "critical")


def test_degradation_with_enough_seeds(tmp_path: Path) -> None:
    worse = [0.4 + 0.01 * seed for seed in range(6)]
    better = [0.9 - 0.01 * seed for seed in range(6)]
    accuracy = {("relu", 3): better, ("relu", 9): worse, ("elu", 3): worse, ("elu", 9): better}
    by_recipe = {
        c.recipe["model.activation"]: c for c in degradation(sweep(tmp_path, accuracy).runs)
    }
    sick, well = by_recipe["relu"], by_recipe["elu"]
    assert (sick.first, sick.second, sick.pairs) == (3, 9, 6)
    assert sick.significant
    assert sick.p == pytest.approx(1 / 2**6)
    assert sick.effect == -1
    assert sick.difference < -0.3
    assert not well.significant


def test_few_seeds_cannot_tell_and_say_how_many_would(tmp_path: Path) -> None:
    accuracy = {("relu", 3): [0.9, 0.9, 0.9], ("relu", 9): [0.2, 0.2, 0.2]}
    (found,) = degradation(sweep(tmp_path, accuracy).runs)
    assert not found.significant
    assert not found.decidable
    assert found.smallest_p == pytest.approx(1 / 8)
    assert found.pairs_needed == 5  # 1/32 is the first power of two below 0.05


def test_one_pair_says_nothing(tmp_path: Path) -> None:
    (found,) = degradation(sweep(tmp_path, {("relu", 3): [0.9], ("relu", 9): [0.2]}).runs)
    assert (found.pairs, found.p, found.pairs_needed) == (1, 1.0, 5)


def test_degradation_needs_pairs_of_one_recipe(tmp_path: Path) -> None:
    accuracy = {("relu", 3): [0.9] * 6, ("elu", 9): [0.2] * 6}
    assert degradation(sweep(tmp_path, accuracy).runs) == []


def test_overfitting_is_not_degradation(tmp_path: Path) -> None:
    accuracy = {
        ("relu", 3): [0.90] * 6,
        ("relu", 9): [0.99] * 6,
    }  # in training
    (found,) = degradation(sweep(tmp_path, accuracy).runs)
    assert not found.significant


def test_comparisons_pool_recipes(tmp_path: Path) -> None:
    good, bad = [0.9, 0.91, 0.92], [0.3, 0.31, 0.32]
    accuracy = {("elu", d): good for d in (2, 3, 4)} | {("relu", d): bad for d in (2, 3, 4)}
    (found,) = compare(sweep(tmp_path, accuracy).runs, "model.activation", "train_accuracy")
    assert (found.first, found.second, found.pairs) == ("elu", "relu", 9)
    assert found.significant
    assert found.difference == pytest.approx(-0.6)


def test_equal_values_show_no_difference(tmp_path: Path) -> None:
    accuracy = {("elu", 3): [0.5] * 6, ("relu", 3): [0.5] * 6}
    (found,) = compare(sweep(tmp_path, accuracy).runs, "model.activation", "train_accuracy")
    assert (found.p, found.effect, found.difference) == (1.0, 0.0, 0.0)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_p_and_keeps_the_order(ps: list[float]) -> None:
    given_ps = [Comparison("a", 1, 2, {}, "q", 5, 0.0, 0.0, p, 0.1) for p in ps]
    adjusted = [comparison.p for comparison in holm(given_ps)]
    assert all(before <= after <= 1 for before, after in zip(ps, adjusted, strict=True))
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)
    if ps:
        assert min(adjusted) == pytest.approx(min(1, len(ps) * min(ps)))
