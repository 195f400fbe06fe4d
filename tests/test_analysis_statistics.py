"""Statistics over seeds and comparisons of values, checked by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gradexp.analysis import (
    Cell,
    Comparison,
    JudgedRun,
    compare,
    degradation,
    find_axes,
    into_cells,
    resolve_axes,
    short_names,
)
from gradexp.analysis.cells import in_order, summarize
from gradexp.analysis.comparisons import holm
from gradexp.errors import ConfigError
from tests.fabricated_runs import a_verdict, judged_run

AXIS = "model.activation"


def runs_of(accuracy: dict[Any, Sequence[float]], axis: str = AXIS) -> list[JudgedRun]:
    """One run per value of the axis and seed, with its training accuracy."""
    return [
        judged_run({axis: value, "seed": seed}, train_accuracy=reached)
        for value, of_value in accuracy.items()
        for seed, reached in enumerate(of_value)
    ]


def one(comparisons: list[Comparison]) -> Comparison:
    (found,) = comparisons
    return found


def pairs(*differences: float) -> Comparison:
    """The comparison of two values whose pairs differ by these."""
    first = [0.1 * seed for seed in range(len(differences))]
    second = [a + b for a, b in zip(first, differences, strict=True)]
    return one(compare(runs_of({"a": first, "b": second}), AXIS, "train_accuracy"))


def test_five_values_by_hand() -> None:
    # The smallest value is the median of 5.8 % of all resamples (three draws or more of five), so
    # that the middle 95 % of medians reach from the smallest value to the largest.
    (found,) = summarize(np.array([[4.0, 1.0, 50.0, 2.0, 3.0]]))
    assert (found.count, found.median) == (5, 3.0)
    assert (found.q1, found.q3) == (2.0, 4.0)
    assert (found.low, found.high) == (1.0, 50.0)


def test_seven_values_by_hand() -> None:
    # The smallest value is the median of 1 % of all resamples, the two smallest of 11 %.
    (found,) = summarize(np.array([[7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]))
    assert (found.low, found.high) == (2.0, 6.0)


@pytest.mark.parametrize("values", [(0, 1, 5, 7.0), (0, 1, 4, 9, 16, 25.0)])
def test_an_interval_holds_95_percent_of_all_resampled_medians(values: tuple[float, ...]) -> None:
    medians = np.median(list(itertools.product(values, repeat=len(values))), axis=1)
    (found,) = summarize(np.array([values]))
    at = np.quantile(medians, (0.015, 0.035, 0.965, 0.985), method="inverted_cdf")
    assert at[0] <= found.low <= at[1]
    assert at[2] <= found.high <= at[3]


def test_an_interval_of_many_values_is_as_wide_as_theory_says() -> None:
    # The ranks of a median's 95 % interval: n / 2 -+ 1.96 sqrt(n) / 2.
    (found,) = summarize(np.arange(400.0)[None])
    assert found.low == pytest.approx(199.5 - 19.6, abs=2.5)
    assert found.high == pytest.approx(199.5 + 19.6, abs=2.5)


def test_every_row_has_its_own_figures() -> None:
    values = np.array([[1.0, 2.0, 3.0], [math.inf, 5.0, 4.0], [9.0, 7.0, 8.0]])
    found = summarize(values)
    assert [row.median for row in found] == [2.0, 5.0, 8.0]
    assert [(row.q1, row.q3) for row in found] == [(1.0, 3.0), (4.0, math.inf), (7.0, 9.0)]
    assert [row.low for row in found] == pytest.approx([1.0, math.nan, 7.0], nan_ok=True)
    assert [row.high for row in found] == pytest.approx([3.0, math.nan, 9.0], nan_ok=True)


def test_two_values_have_an_interval_and_one_has_none() -> None:
    (found,) = summarize(np.array([[1.0, 3.0]]))
    assert (found.low, found.median, found.high) == (1.0, 2.0, 3.0)
    (found,) = summarize(np.array([[1.0]]))
    assert (found.q1, found.median, found.q3) == (1.0, 1.0, 1.0)
    assert math.isnan(found.high)


def test_every_cell_counts_the_runs_that_have_a_figure() -> None:
    accuracy = {"a": [0.1, 0.3, 0.2], "b": [0.9, math.nan, 0.5], "c": [math.nan] * 3, "d": [0.4]}
    cells = into_cells(runs_of(accuracy), [AXIS])
    found = [cell.statistics["train_accuracy"] for cell in cells]
    assert [cell.axes for cell in cells] == [{AXIS: value} for value in "abcd"]
    assert [len(cell.runs) for cell in cells] == [3, 3, 3, 1]
    assert [statistic.count for statistic in found] == [3, 2, 0, 1]
    assert [statistic.median for statistic in found] == pytest.approx(
        [0.2, 0.7, math.nan, 0.4], nan_ok=True
    )
    assert math.isnan(found[2].low)
    assert cells[0].statistics["test_loss"].count == 0


def cell_of(*verdicts: tuple[str, Any]) -> Cell:
    runs = [judged_run({"seed": i}, a_verdict(*verdict)) for i, verdict in enumerate(verdicts)]
    (cell,) = into_cells(runs, [])
    return cell


def test_of_equally_frequent_verdicts_the_harsher_one_names_the_cell() -> None:
    cell = cell_of(("healthy", "note"), ("dying", "critical"), ("vanishing", "warning"))
    assert list(cell.verdicts) == ["vanishing", "dying", "healthy"]
    assert cell.verdict == "vanishing"
    cell = cell_of(("stalled", "critical"), ("healthy", "note"))
    assert list(cell.verdicts) == ["stalled", "healthy"]


def test_the_most_frequent_verdict_comes_first_however_mild() -> None:
    cell = cell_of(("diverged", "critical"), ("healthy", "note"), ("healthy", "note"))
    assert list(cell.verdicts.items()) == [("healthy", 2), ("diverged", 1)]
    assert (cell.verdict, cell.level) == ("healthy", "note")


def test_a_cell_has_the_highest_level_of_its_verdict() -> None:
    assert cell_of(("dying", "note"), ("dying", "critical"), ("dying", "warning")).level == (
        "critical"
    )
    assert cell_of(("dying", "warning"), ("dying", "note")).level == "warning"
    assert cell_of(("dying", "note"), ("dying", "note"), ("diverged", "critical")).level == "note"


def test_only_the_worst_verdict_of_a_run_counts() -> None:
    run = judged_run({}, a_verdict("vanishing"), a_verdict("stalled"))
    (cell,) = into_cells([run], [])
    assert cell.verdicts == {"vanishing": 1}


def test_axes_are_what_differs_in_the_order_of_the_config() -> None:
    configs: list[dict[str, Any]] = [
        {"name": "a", "seed": 0, "device": "cpu", "b": 1, "a": [1, 2], "c": True, "same": 0},
        {"name": "b", "seed": 1, "device": "cuda", "b": 1.0, "a": [1, 3], "c": 1, "same": 0},
        {"name": "c", "seed": 2, "device": "mps", "b": 1, "a": [1, 2], "c": True, "same": 0},
    ]
    assert find_axes([judged_run(config) for config in configs]) == ["b", "a", "c"]
    assert find_axes([judged_run(config) for config in configs[:1]]) == []


def test_a_key_that_some_runs_lack_differs() -> None:
    assert find_axes([judged_run({"a": 1}), judged_run({"a": 1, "b": None})]) == []
    assert find_axes([judged_run({"a": 1}), judged_run({"a": 1, "b": 2})]) == ["b"]


def test_an_option_is_an_axis_where_the_name_of_its_part_does_not_tell_it() -> None:
    def axes(*parts: tuple[str, float | None]) -> list[str]:
        rows = [{"act": name} | ({"act.slope": s} if s is not None else {}) for name, s in parts]
        return find_axes([judged_run(row) for row in rows])

    assert axes(("leaky", 0.1), ("relu", None)) == ["act"]
    assert axes(("leaky", 0.1), ("leaky", 0.2)) == ["act.slope"]
    assert axes(("leaky", 0.1), ("leaky", 0.2), ("relu", None)) == ["act", "act.slope"]
    # `active` begins with the letters of `act` and is no option of it.
    rows = [{"act": "x", "active": 1}, {"act": "y", "active": 2}]
    assert find_axes([judged_run(row) for row in rows]) == ["act", "active"]


def test_words_stand_for_the_ends_of_keys() -> None:
    run = judged_run({"model.depth": 1, "depth": 2, "train.lr": 3, "plan.lr": 4, "a.b.c": 5})
    assert resolve_axes(["depth", "train.lr", "b.c", "c"], [run]) == [
        "depth",
        "train.lr",
        "a.b.c",
        "a.b.c",
    ]
    with pytest.raises(ConfigError) as ambiguous:
        resolve_axes(["lr"], [run])
    assert str(ambiguous.value) == (
        "--by lr: could be any of train.lr, plan.lr; give the whole key"
    )
    with pytest.raises(ConfigError) as unknown:
        resolve_axes(["train.lrr"], [run])
    assert str(unknown.value) == (
        "--by train.lrr: no run has this key in its config. Did you mean 'train.lr'?"
    )


def test_short_names_are_the_shortest_that_no_other_key_ends_with() -> None:
    assert short_names(["a.b.c", "x.b.c", "c.d", "d.e"]) == {
        "a.b.c": "a.b.c",
        "x.b.c": "x.b.c",
        "c.d": "d",
        "d.e": "e",
    }
    assert short_names(["depth", "model.depth", "abcdepth"]) == {
        "depth": "depth",
        "model.depth": "model.depth",
        "abcdepth": "abcdepth",
    }
    assert short_names(["a.lr", "b.a.lr"]) == {"a.lr": "a.lr", "b.a.lr": "b.a.lr"}


def test_values_come_in_order_numbers_words_nothing() -> None:
    values = [None, "b", 10, "a", 2.5, True, -1]
    assert sorted(values, key=in_order) == [-1, 2.5, 10, True, "a", "b", None]
    cells = into_cells([judged_run({"x": value}) for value in values], ["x"])
    assert [cell.axes["x"] for cell in cells] == [-1, 2.5, 10, True, "a", "b", None]


def test_lists_on_an_axis_are_grouped_by_what_they_hold() -> None:
    runs = [judged_run({"width": width}) for width in ([8, 4], [8, 8], [8, 4])]
    assert [len(cell.runs) for cell in into_cells(runs, ["width"])] == [2, 1]


def test_cells_of_two_axes_are_ordered_by_the_first_one_first() -> None:
    configs = [{"a": a, "b": b} for a, b in [(2, "x"), (1, "y"), (2, "w"), (1, "x")]]
    cells = into_cells([judged_run(config) for config in configs], ["a", "b"])
    found = [(cell.axes["a"], cell.axes["b"]) for cell in cells]
    assert found == [(1, "x"), (1, "y"), (2, "w"), (2, "x")]


def test_runs_of_no_axis_are_one_cell() -> None:
    (cell,) = into_cells(runs_of({"a": [0.1, 0.2], "b": [0.3]}), [])
    assert (cell.axes, cell.statistics["train_accuracy"].median) == ({}, 0.2)


def test_a_difference_is_the_median_of_the_paired_differences() -> None:
    # By mean it would be 0.14; unpaired medians differ by something else again.
    runs = runs_of({"a": [0.1, 0.5, 0.3, 0.2, 0.4], "b": [0.2, 0.6, 0.3, 0.7, 0.4]})
    found = one(compare(runs, AXIS, "train_accuracy"))
    assert (found.first, found.second, found.pairs) == ("a", "b", 5)
    assert (found.axis, found.quantity, found.recipe) == (AXIS, "train_accuracy", {})
    assert found.difference == pytest.approx(0.1)


def test_p_counts_the_signs_that_chance_could_have_drawn() -> None:
    # Differences 3, 2, -1 sum to 4: of the eight choices of signs two reach it, and both tails
    # count. Ranks in favour are 3 + 2, against 1, of 6.
    found = pairs(3, 2, -1)
    assert found.p == pytest.approx(2 * 2 / 8)
    assert found.effect == pytest.approx(4 / 6)
    assert found.smallest_p == pytest.approx(2 / 8)
    assert found.difference == pytest.approx(2)
    mirrored = pairs(-3, -2, 1)
    assert mirrored.p == pytest.approx(found.p)
    assert mirrored.effect == pytest.approx(-4 / 6)
    assert mirrored.difference == pytest.approx(-2)


@pytest.mark.parametrize(("count", "significant"), [(5, False), (6, True)])
def test_six_pairs_of_one_sign_are_significant(count: int, significant: bool) -> None:
    found = pairs(*(0.1 * i for i in range(1, count + 1)))
    assert found.p == pytest.approx(2 / 2**count)
    assert (found.significant, found.decidable) == (significant, significant)
    assert found.effect == 1
    assert found.pairs_needed == 6


def test_a_difference_of_nothing_has_a_rank_and_no_side() -> None:
    assert pairs(0, 2, 3).effect == pytest.approx((2 + 3) / 6)
    assert pairs(1, 1, -1, 4).effect == pytest.approx((2 + 2 - 2 + 4) / 10)  # ties share ranks


def test_with_many_pairs_p_is_sampled_and_bounded() -> None:
    found = pairs(*(0.01 * i for i in range(1, 17)))
    assert found.smallest_p == pytest.approx(2 / 10_000)
    assert found.p == pytest.approx(2 / 10_000)  # none of 9,999 drawn choices of signs reaches it


@pytest.mark.parametrize(
    ("p", "smallest", "significant", "decidable", "needed"),
    [
        (0.05, 0.05, True, True, 3),
        (0.0501, 0.0501, False, False, 4),
        (1.0, 0.1, False, False, 4),
        (1.0, 0.11, False, False, 5),
        (1.0, 0.8, False, False, 7),
        (0.01, 0.001, True, True, 3),
    ],
)
def test_what_p_says(
    *, p: float, smallest: float, significant: bool, decidable: bool, needed: int
) -> None:
    found = Comparison(AXIS, 1, 2, {}, "train_accuracy", 3, 0.1, 1.0, p, smallest)
    assert (found.significant, found.decidable) == (significant, decidable)
    assert found.pairs_needed == needed


def adjusted(*ps: float) -> list[float]:
    given = [Comparison("a", i, 0, {}, "q", 5, 0.0, 0.0, p, 0.01) for i, p in enumerate(ps)]
    found = holm(given)
    assert [comparison.first for comparison in found] == list(range(len(ps)))
    assert [c.smallest_p for c in found] == pytest.approx([0.01 * len(ps)] * len(ps))
    return [comparison.p for comparison in found]


def test_holm_by_hand() -> None:
    # The smallest p times 3, the next times 2, the largest times 1, never falling again.
    assert adjusted(0.04, 0.01, 0.015) == pytest.approx([0.04, 0.03, 0.03])
    assert adjusted(0.01, 0.04, 0.03) == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted(0.5, 0.4, 0.9) == pytest.approx([1.0, 1.0, 1.0])
    assert adjusted(0.02, 0.02) == pytest.approx([0.04, 0.04])
    assert adjusted() == []


def test_all_pairs_of_three_values_are_compared_and_adjusted_together() -> None:
    runs = runs_of({"b": [0.5] * 6, "a": [0.2] * 6, "c": [0.9] * 6})
    found = compare(runs, AXIS, "train_accuracy")
    assert [(c.first, c.second) for c in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [c.difference for c in found] == pytest.approx([0.3, 0.7, 0.4])
    assert [c.p for c in found] == pytest.approx([3 * 2 / 2**6] * 3)
    assert [c.smallest_p for c in found] == pytest.approx([3 * 2 / 2**6] * 3)
    assert [c.pairs_needed for c in found] == [7] * 3


@pytest.mark.parametrize(("values", "comparisons"), [(2, 1), (5, 10), (6, 15), (7, 6), (9, 8)])
def test_beyond_six_values_only_neighbours_are_compared(values: int, comparisons: int) -> None:
    runs = runs_of({value: [value / 10, value / 9] for value in range(values)}, "model.depth")
    found = compare(runs, "model.depth", "train_accuracy")
    assert len(found) == comparisons
    if values > 6:
        assert [(c.first, c.second) for c in found] == [(i, i + 1) for i in range(values - 1)]


def test_pairs_share_seed_and_recipe_and_leave_gaps_out() -> None:
    runs = [
        judged_run({AXIS: "a", "seed": 0, "lr": 1}, train_accuracy=0.1),
        judged_run({AXIS: "b", "seed": 0, "lr": 1}, train_accuracy=0.4),
        judged_run({AXIS: "a", "seed": 1, "lr": 1}, train_accuracy=0.2),  # b has no seed 1
        judged_run({AXIS: "b", "seed": 2, "lr": 1}, train_accuracy=0.3),
        judged_run({AXIS: "a", "seed": 0, "lr": 2}, train_accuracy=0.5),
        judged_run({AXIS: "b", "seed": 0, "lr": 2}, train_accuracy=0.6),
        judged_run({AXIS: "a", "seed": 3, "lr": 2}, train_accuracy=math.nan),
        judged_run({AXIS: "b", "seed": 3, "lr": 2}, train_accuracy=0.6),
        judged_run({"seed": 0, "lr": 2}, train_accuracy=0.9),  # has no such axis
    ]
    found = one(compare(runs, AXIS, "train_accuracy"))
    assert found.pairs == 2
    assert found.difference == pytest.approx(0.2)


def test_names_devices_and_options_of_the_axis_make_no_other_recipe() -> None:
    runs = [
        judged_run(
            {AXIS: "a", f"{AXIS}.slope": 1, "seed": 0, "name": "x", "device": "cpu"},
            train_accuracy=0.1,
        ),
        judged_run({AXIS: "b", "seed": 0, "name": "y", "device": "cuda"}, train_accuracy=0.4),
    ]
    assert one(compare(runs, AXIS, "train_accuracy")).pairs == 1


def test_the_quantity_that_is_asked_for_is_compared() -> None:
    runs = [
        judged_run({AXIS: value, "seed": 0}, train_accuracy=0.1, test_loss=loss)
        for value, loss in (("a", 1.0), ("b", 3.5))
    ]
    assert one(compare(runs, AXIS, "test_loss")).difference == 2.5
    assert compare(runs, AXIS, "test_accuracy") == []


def test_degradation_is_asked_one_sided_of_neighbours_by_recipe() -> None:
    def depths(lr: float, accuracy: dict[int, float]) -> list[JudgedRun]:
        return [
            judged_run(
                {"model.depth": depth, "lr": lr, "same": 1, "seed": seed},
                train_accuracy=reached + 0.01 * seed,
            )
            for depth, reached in accuracy.items()
            for seed in range(5)
        ]

    runs = depths(0.1, {2: 0.9, 4: 0.8, 8: 0.3}) + depths(0.2, {2: 0.5, 4: 0.6})
    found = degradation(runs)
    assert [(c.recipe, c.first, c.second) for c in found] == [
        ({"lr": "0.1"}, 2, 4),
        ({"lr": "0.1"}, 4, 8),
        ({"lr": "0.2"}, 2, 4),
    ]
    assert [c.difference for c in found] == pytest.approx([-0.1, -0.5, 0.1])
    assert [c.effect for c in found] == [-1, -1, 1]
    assert [c.p for c in found] == pytest.approx([2 / 32, 2 / 32, 1])
    assert [c.smallest_p for c in found] == pytest.approx([2 / 32, 2 / 32, 1 / 32])
    assert {(c.axis, c.quantity, c.pairs) for c in found} == {("model.depth", "train_accuracy", 5)}


def test_degradation_of_another_axis_and_quantity() -> None:
    runs = [
        judged_run({"model.depth": 2, "model.width": width, "seed": 0}, test_accuracy=reached)
        for width, reached in ((4, 0.5), (8, 0.25))
    ]
    found = one(degradation(runs, "model.width", "test_accuracy"))
    assert (found.axis, found.quantity, found.difference) == ("model.width", "test_accuracy", -0.25)
