"""Every limit of every rule: just below it, at it and just above it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gradexp.analysis import RULES, judge, load_rules
from tests.fabricated_runs import GOOD, LOST, Fabricated, verdicts

CLOSE = 1e-4  # how near below and above a limit is looked
GUESS = math.log(10)  # the loss of a constant guess among ten classes
Shown = dict[str, Any]
Level = str | None


def quarters(*losses: float, each: int = 10) -> Shown:
    """Training whose loss is constant in each quarter; accuracy stays at chance."""
    columns = {"steps.loss": np.repeat(losses, each)}
    return {"steps": 4 * each, "accuracy": (0.1, 0.1), "columns": columns}


def falls(decades: float) -> Shown:
    return {"pre_grad_norm": 10.0 ** np.linspace(-decades, 0, 6), **LOST}


def grows(decades: float) -> Shown:
    return {"pre_grad_norm": 10.0 ** np.linspace(decades, 0, 6), **LOST}


def rises_once(ratio: float) -> Shown:
    return {"columns": {"steps.grad_norm": [1.0] * 25 + [ratio] + [2.0] * 14}, **LOST}


def updates(ratio: float) -> Shown:
    return {"update_ratio": ratio, **LOST}


def updates_at_some_steps(share: float) -> Shown:
    norms = np.where(np.arange(20) < round(20 * share), 2.0, 1e-3)
    return {"steps": 20, "columns": {"gradients.update_norm": norms[:, None]}, **LOST}


def ends_above_its_start(ratio: float) -> Shown:
    return quarters(3.0, 3.0, 3.0, 3.0 * ratio)


def ends_above_a_guess(ratio: float) -> Shown:
    return quarters(0.5, 0.5, 0.5, GUESS * ratio)


def gains_on_a_guess(gain: float) -> Shown:
    return quarters(*[GUESS * (1 - gain)] * 4)


def gains_of_late(recent: float) -> Shown:
    return quarters(2.75, 2.5, 2.75, 2.5 * (1 - recent))


def trains_for(steps: float) -> Shown:
    return {"steps": round(steps), **LOST}


def dead(share: float) -> Shown:
    """So many of 5 x 20 units, in all layers alike; none of them wholly dead."""
    each = [round(100 * share) // 5 + (i < round(100 * share) % 5) for i in range(5)]
    return {"units": 20, "dead": {i: [n] * 5 for i, n in enumerate(each, start=1)}, **LOST}


def saturated(share: float) -> Shown:
    return {"activation": "tanh", "saturated": share, **LOST}


def at_some_probes(share: float, sick: Any, well: Any, column: str = "pre_grad_norm") -> Shown:
    """The sign is shown by the last of ten probes and by earlier ones up to the share."""
    shown = np.arange(10) >= 10 - round(10 * share)
    return {"probes": 10, "columns": {f"signal.{column}": np.where(shown[:, None], sick, well)}}


def falls_at_some_probes(share: float) -> Shown:
    return at_some_probes(share, falls(4)["pre_grad_norm"], np.ones(6)) | LOST


def grows_at_some_probes(share: float) -> Shown:
    return at_some_probes(share, grows(4)["pre_grad_norm"], np.ones(6)) | LOST


def saturated_at_some_probes(share: float) -> Shown:
    shown = at_some_probes(share, 0.9, 0.1, "saturated_fraction")
    return shown | {"activation": "sigmoid", **LOST}


@dataclass(frozen=True)
class Edge:
    """What is said just below a limit, exactly at it, and just above it.

    `step` is how far below and above is looked; the exact limit is passed over where no float
    reaches it. `other` is another value for the limit, to which the edge must move.
    """

    rule: str
    limit: str
    default: float
    fabricate: Callable[[float], Shown]
    verdict: str
    levels: tuple[Level, Level, Level]
    other: float
    step: float = 0.0
    exact: bool = True

    def values(self, limit: float) -> dict[float, Level]:
        step = self.step or CLOSE * limit
        below, at, above = self.levels
        levels = {limit - step: below, limit: at, limit + step: above}
        return levels if self.exact else {v: level for v, level in levels.items() if v != limit}


EDGES = (
    Edge("vanishing", "decades", 3, falls, "vanishing", (None, "critical", "critical"), 5),
    Edge(
        "vanishing",
        "persistence",
        0.5,
        falls_at_some_probes,
        "vanishing",
        ("note", "critical", "critical"),
        0.8,
        step=0.1,
    ),
    Edge("exploding_depth", "decades", 3, grows, "exploding", (None, "critical", "critical"), 2),
    Edge(
        "exploding_depth",
        "persistence",
        0.5,
        grows_at_some_probes,
        "exploding",
        ("note", "critical", "critical"),
        0.2,
        step=0.1,
    ),
    Edge(
        "exploding_time", "ratio", 1000, rises_once, "exploding", (None, "critical", "critical"), 64
    ),
    Edge(
        "exploding_updates",
        "ratio",
        0.2,
        updates,
        "exploding",
        (None, "critical", "critical"),
        0.05,
    ),
    Edge(
        "exploding_updates",
        "persistence",
        0.5,
        updates_at_some_steps,
        "exploding",
        (None, "critical", "critical"),
        0.75,
        step=0.05,
    ),
    Edge(
        "diverged",
        "ratio",
        2,
        ends_above_its_start,
        "diverged",
        (None, "critical", "critical"),
        4,
    ),
    Edge(
        "diverged",
        "ratio",
        2,
        ends_above_a_guess,
        "diverged",
        (None, "critical", "critical"),
        1.25,
        exact=False,
    ),
    Edge(
        "stalled",
        "gain",
        0.02,
        gains_on_a_guess,
        "stalled",
        ("critical", None, None),
        0.3,
        exact=False,
    ),
    Edge(
        "stalled",
        "recent",
        0.02,
        gains_of_late,
        "stalled",
        ("critical", None, None),
        0.0625,
        exact=False,
    ),
    Edge(
        "stalled",
        "steps",
        20,
        trains_for,
        "stalled",
        (None, "critical", "critical"),
        31,
        step=1,
    ),
    Edge("dying", "share", 0.5, dead, "dying", ("note", "note", "critical"), 0.25, step=0.01),
    Edge("dying", "noted", 0.1, dead, "dying", (None, "note", "note"), 0.3, step=0.01),
    Edge("saturated", "share", 0.5, saturated, "saturated", (None, "critical", "critical"), 0.75),
    Edge(
        "saturated",
        "persistence",
        0.5,
        saturated_at_some_probes,
        "saturated",
        ("note", "critical", "critical"),
        0.9,
        step=0.1,
    ),
)
by_name = pytest.mark.parametrize("edge", EDGES, ids=lambda e: f"{e.fabricate.__name__}-{e.limit}")


@by_name
def test_a_limit_is_where_it_is_said_to_be(tmp_path: Path, edge: Edge) -> None:
    for value, level in edge.values(edge.default).items():
        found = verdicts(tmp_path / str(value), **edge.fabricate(value)).get(edge.verdict)
        assert (found.level if found else None) == level, value


@by_name
def test_a_limit_of_a_file_is_the_one_that_counts(tmp_path: Path, edge: Edge) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({edge.rule: {edge.limit: edge.other}}))
    for value, level in edge.values(edge.other).items():
        run = Fabricated(**edge.fabricate(value)).write(tmp_path / str(value))
        found = [v for v in judge(run, load_rules(file)) if v.name == edge.verdict]
        assert [v.level for v in found] == ([level] if level else []), value


def test_the_limits_are_these_and_no_others() -> None:
    assert {entry.name: {o.name: o.default for o in entry.options} for entry in RULES} == {
        "vanishing": {"decades": 3.0, "persistence": 0.5},
        "exploding_depth": {"decades": 3.0, "persistence": 0.5},
        "exploding_time": {"ratio": 1000.0},
        "exploding_updates": {"ratio": 0.2, "persistence": 0.5},
        "non_finite": {},
        "exploding_non_finite": {},
        "diverged": {"ratio": 2.0},
        "stalled": {"gain": 0.02, "recent": 0.02, "steps": 20},
        "dead_layer": {},
        "dying": {"share": 0.5, "noted": 0.1},
        "saturated": {"share": 0.5, "persistence": 0.5},
    }


@pytest.mark.parametrize(
    ("fabricate", "rule", "limit", "value", "found"),
    [
        (ends_above_its_start, "diverged", "ratio", 2.5, True),
        (gains_of_late, "stalled", "recent", 0.25, False),
    ],
)
def test_limits_that_floats_reach_exactly(
    tmp_path: Path,
    *,
    fabricate: Callable[[float], Shown],
    rule: str,
    limit: str,
    value: float,
    found: bool,
) -> None:
    """A loss at `ratio` times its start diverged; one that gained `recent` did not stall."""
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({rule: {limit: value}}))
    run = Fabricated(**fabricate(value)).write(tmp_path / "run")
    assert (rule in {v.name for v in judge(run, load_rules(file))}) == found


def with_noise(deviation: float) -> Shown:
    """The last quarter's ten losses lie around 2.34, the earlier ones at 2.40."""
    last = [2.34 + deviation * (-1) ** i for i in range(10)]
    return {"columns": {"steps.loss": [2.40] * 30 + last}, "accuracy": (0.1, 0.1)}


def test_a_gain_within_the_noise_is_no_gain(tmp_path: Path) -> None:
    # The gain is 1 - 2.34 / 2.40 = 0.025. Two standard errors of the ratio of two medians of ten
    # values, each with the median absolute deviation d: 2 sqrt(2) 1.2533 1.4826 d / sqrt(10) / 2.4.
    enough = 0.025 * 2.4 * math.sqrt(10) / (2 * math.sqrt(2) * 1.2533 * 1.4826)
    assert enough == pytest.approx(0.0361, abs=5e-5)
    assert "stalled" not in verdicts(tmp_path / "still", **with_noise(enough * (1 - CLOSE)))
    assert "stalled" in verdicts(tmp_path / "noisy", **with_noise(enough * (1 + CLOSE)))


def test_one_spike_is_no_noise(tmp_path: Path) -> None:
    losses = [2.40] * 30 + [2.34] * 9 + [9.0]
    found = verdicts(tmp_path, columns={"steps.loss": losses}, accuracy=(0.1, 0.1))
    assert "stalled" not in found


@pytest.mark.parametrize(
    ("losses", "stalled"),
    [
        ((2.5, 2.29, 2.5, 2.29), True),  # no better than the second quarter
        ((2.29, 2.5, 2.5, 2.29), True),
        ((2.5, 2.5, 2.29, 2.29), True),
        ((2.5, 2.5, 2.5, 2.29), False),
        ((2.2, 2.2, 2.2, 2.2), False),  # it learned, if only little
    ],
)
def test_going_nowhere_is_seen_against_the_best_quarter(
    tmp_path: Path, losses: tuple[float, ...], stalled: bool
) -> None:
    assert ("stalled" in verdicts(tmp_path, **quarters(*losses))) == stalled


def test_what_diverged_did_not_stall(tmp_path: Path) -> None:
    found = verdicts(tmp_path, **quarters(2.4, 3.0, 4.0, 5.0))
    assert "diverged" in found
    assert "stalled" not in found


@pytest.mark.parametrize(
    ("smallest", "unit"), [(0.9e-30, "decades"), (1e-30, "layers"), (1.1e-30, "layers")]
)
def test_zeros_beside_norms_below_1e_30_are_underflow(
    tmp_path: Path, smallest: float, unit: str
) -> None:
    profile = [0.0, smallest, 1.0, 1.0, 1.0, 1.0]
    assert verdicts(tmp_path, pre_grad_norm=profile, **LOST)["vanishing"].unit == unit


@pytest.mark.parametrize(("at", "level"), [([9], "critical"), ([8], "note"), ([0, 8], "note")])
def test_a_gradient_that_is_exactly_0_counts_from_the_first_time(
    tmp_path: Path, at: list[int], level: str
) -> None:
    profile = np.ones((10, 6))
    profile[at, 0] = 0
    found = verdicts(tmp_path, probes=10, pre_grad_norm=profile, **LOST)["vanishing"]
    assert (found.level, found.unit) == (level, "layers")


def test_a_sign_that_is_gone_at_the_last_probe_is_a_note(tmp_path: Path) -> None:
    most = np.arange(10)[:, None] < 9
    rows = {
        "vanishing": ("relu", "pre_grad_norm", falls(4)["pre_grad_norm"], 1.0),
        "exploding": ("relu", "pre_grad_norm", grows(4)["pre_grad_norm"], 1.0),
        "saturated": ("tanh", "saturated_fraction", 0.9, 0.1),
    }
    for name, (activation, column, sick, well) in rows.items():
        columns = {f"signal.{column}": np.where(most, sick, well)}
        shown = {"activation": activation, "probes": 10, "columns": columns, **LOST}
        found = verdicts(tmp_path / name, **shown)[name]
        assert (found.level, found.steps) == ("note", (0, 35)), name


def learned(accuracy: float, loss: float = 0.5) -> Shown:
    """A vanishing gradient in a net with two classes that ends at this accuracy and loss."""
    classes = {"layers.units": [16] * 5 + [2], "steps.loss": loss}
    return falls(4) | {"columns": classes, "accuracy": (accuracy, accuracy)}


@pytest.mark.parametrize(
    ("accuracy", "loss", "level"),
    [
        (0.751, 0.5, "note"),  # 0.75 is half of the way from chance, 0.5, to perfect
        (0.75, 0.5, "note"),
        (0.749, 0.5, "warning"),
        (0.551, 0.5, "warning"),  # a tenth of the way
        (0.549, 0.5, "critical"),
        (0.9, math.log(2) * (1 - CLOSE), "note"),
        (0.9, math.log(2) * (1 + CLOSE), "warning"),  # worse than a constant guess
    ],
)
def test_a_sign_weighs_as_much_as_the_harm_it_did(
    tmp_path: Path, accuracy: float, loss: float, level: str
) -> None:
    assert verdicts(tmp_path, **learned(accuracy, loss))["vanishing"].level == level


HARMED: dict[str, tuple[str, Shown]] = {
    "vanishing": ("vanishing", {"decay": 1.0}),
    "exploding over depth": ("exploding", {"decay": -1.0}),
    "exploding over time": ("exploding", {"grad_norm_growth": 1e5}),
    "exploding by updates": ("exploding", {"update_ratio": 0.5}),
    "dying": ("dying", {"dead": {i: [12] * 5 for i in range(1, 6)}}),
    "saturated": ("saturated", {"activation": "tanh", "saturated": 0.9}),
}


@pytest.mark.parametrize(("name", "shown"), HARMED.values(), ids=HARMED)
def test_every_sign_is_a_note_where_training_did_well(
    tmp_path: Path, name: str, shown: Shown
) -> None:
    middling = {"loss": (2.3, 1.5), "accuracy": (0.1, 0.45)}
    for level, training in (("note", GOOD), ("warning", middling), ("critical", LOST)):
        assert verdicts(tmp_path / level, **shown, **training)[name].level == level


@pytest.mark.parametrize(
    ("activation", "judged"),
    [("sigmoid", True), ("tanh", True), ("hardsigmoid", True), ("hardtanh", True)]
    + [(name, False) for name in ("relu", "relu6", "gelu", "elu", "softplus", "hardswish", "none")],
)
def test_who_is_judged_as_saturated(tmp_path: Path, activation: str, judged: bool) -> None:
    shown = {"activation": activation, "saturated": 0.9, **LOST}
    assert ("saturated" in verdicts(tmp_path, **shown)) == judged


def test_only_units_that_can_be_dead_are_counted(tmp_path: Path) -> None:
    # Two layers of 16 can; 17 of their 32 units are dead, and 17 of all 80.
    counts = np.full((5, 6), np.nan)
    counts[:, :2] = [9, 8]
    columns = {"units.dead": [[None if math.isnan(n) else int(n) for n in row] for row in counts]}
    found = verdicts(tmp_path, columns=columns, **LOST)["dying"]
    assert (found.figure, found.level) == (17 / 32, "critical")


def test_layers_are_dying_from_a_tenth_of_their_units_on(tmp_path: Path) -> None:
    dead_units = {1: [20] * 5, 2: [2] * 5, 3: [1] * 5, 4: [3] * 5}
    found = verdicts(tmp_path, units=21, dead=dead_units, **LOST)["dying"]
    assert found.layers == ("hidden.1", "hidden.4")
    found = verdicts(tmp_path / "20", units=20, dead=dead_units | {1: [19] * 5}, **LOST)["dying"]
    assert found.layers == ("hidden.1", "hidden.2", "hidden.4")


def test_what_a_run_shows_after_its_first_nan_is_not_judged_as_dying(tmp_path: Path) -> None:
    # Probes at steps 0, 10, 20, 30 and 40; the loss is nan from step 20 on.
    for name, counts, expected in (
        ("before", [0, 16, 16, 16, 16], {"dying"}),
        ("after", [0, 0, 16, 16, 16], set()),
        ("at once", [16, 0, 0, 0, 0], set()),
    ):
        found = verdicts(tmp_path / name, dead={2: counts}, non_finite_from=20, **LOST)
        assert set(found) & {"dying"} == expected, name


def test_a_run_without_one_sound_probe_says_nothing_of_its_units(tmp_path: Path) -> None:
    found = verdicts(tmp_path, dead={2: [16] * 5}, non_finite_from=0, **LOST)
    assert set(found) == {"diverged", "exploding"}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_did_not_vanish(tmp_path: Path, bad: float) -> None:
    profile = np.tile(falls(6)["pre_grad_norm"], (5, 1))
    profile[-1, 0] = bad
    found = verdicts(tmp_path, pre_grad_norm=profile, **LOST)
    assert {"diverged", "exploding"} <= set(found)
    assert "vanishing" not in found
