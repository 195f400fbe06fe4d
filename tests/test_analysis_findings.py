"""What is said of a sick run, word for word: figures, layers, steps, the cause and what to do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gradexp.analysis import HEALTHY, RULES, Evidence, Verdict, judge
from gradexp.cli.app import app
from tests.fabricated_runs import GOOD, LOST, Fabricated, read_aloud, verdicts

Shown = dict[str, Any]
REVIVE = (
    "Take leaky_relu or elu, a smaller learning rate or batch norm: a layer without a living unit "
    "passes nothing on and nothing back, so no update can wake it."
)
SCALE_THE_INIT = (
    "Scale the init to the activation (kaiming for relu, xavier for tanh), or add batch norm or "
    "shortcuts: each of these layers multiplies the gradient by less than 1."
)
SMALLER_INIT = (
    "Take a smaller init (kaiming, xavier or orthogonal), or add layer norm or shortcuts: each of "
    "these layers multiplies the gradient by more than 1. Clipping only hides it."
)
LARGER_STEPS = (
    "Raise the learning rate, or mend what keeps gradients away: an update changes the weights by "
    "only {} of their norm, and 1e-3 is usual."
)
SATURATED = (
    "Take a smaller init (xavier), normalize the inputs, or add norm before the activation: there "
    "its slope is below 0.02 and hardly any gradient passes."
)
NOT_FINITE = (
    "Take a smaller learning rate or init, warm up, or clip by norm: what leaves the range of "
    "float32 never comes back."
)
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
HIDDEN = tuple(f"hidden.{i}" for i in range(1, 6))
QUARTERS = np.repeat((2.4, 2.39, 2.4, 2.38), 10)

CASES: dict[str, tuple[Shown, Verdict]] = {
    "decay of sigmoid layers": (
        {"activation": "sigmoid", "decay": 0.8, **LOST},
        Verdict(
            "vanishing",
            "critical",
            HIDDEN[:2],
            (0, 40),
            4.0,
            3.0,
            "decades",
            "Going back from readout to hidden.1 the gradient falls by 4.0 decades "
            "(0.8 per layer), at all 5 probes.",
            "Take relu with kaiming init, or add batch norm or shortcuts: sigmoid's slope is at "
            "most 0.25, so every layer shrinks what passes.",
        ),
    ),
    "a fall between two layers": (
        {"pre_grad_norm": [1e-4, 1e-4, 1, 1, 1, 1], "probes": 1, **LOST},
        Verdict(
            "vanishing",
            "critical",
            HIDDEN[:2],
            (0, 0),
            4.0,
            3.0,
            "decades",
            "Going back from hidden.3 to hidden.2 the gradient falls by 4.0 decades (hardly any "
            "elsewhere), at step 0.",
            SCALE_THE_INIT,
        ),
    ),
    "decay beside batch norm, at some probes": (
        {
            "norm": "batch",
            "pre_grad_norm": [np.ones(6), *[10.0 ** np.arange(-5, 1)] * 3, np.ones(6)],
            **LOST,
        },
        Verdict(
            "vanishing",
            "note",
            HIDDEN[:3],
            (10, 30),
            5.0,
            3.0,
            "decades",
            "Going back from readout to hidden.1 the gradient falls by 5.0 decades (1 per layer), "
            "at 3 of 5 probes, from step 10 to 30.",
            "Add shortcuts or take fewer layers: the gradient shrinks although layers are "
            "normalized.",
        ),
    ),
    "a zero gradient below dead units": (
        {"pre_grad_norm": [0, 0, 1, 1, 1, 1], "dead": {2: [16] * 5}, **LOST},
        Verdict(
            "vanishing",
            "critical",
            HIDDEN[:2],
            (0, 40),
            2.0,
            0.0,
            "layers",
            "The gradient is exactly 0 in hidden.1 and hidden.2, because every unit of hidden.2 is "
            "dead, at all 5 probes.",
            REVIVE,
        ),
    ),
    "a zero gradient below saturation": (
        {
            "activation": "hardtanh",
            "pre_grad_norm": [0, 1, 1, 1, 1, 1],
            "columns": {"signal.saturated_fraction": [1, 0, 0, 0, 0, 0]},
            **LOST,
        },
        Verdict(
            "vanishing",
            "critical",
            HIDDEN[:1],
            (0, 40),
            1.0,
            0.0,
            "layers",
            "The gradient is exactly 0 in hidden.1, because hidden.1 is flat for every example, at "
            "all 5 probes.",
            "Take a smaller init or add norm before the activation: far from 0 its slope is 0.",
        ),
    ),
    "a zero gradient below zero weights": (
        {"pre_grad_norm": [0, 0, 0, 1, 1, 1], **LOST},
        Verdict(
            "vanishing",
            "critical",
            HIDDEN[:3],
            (0, 40),
            3.0,
            0.0,
            "layers",
            "The gradient is exactly 0 in hidden.1 to hidden.3 (3 layers), because what follows "
            "hidden.3 passes nothing back, at all 5 probes.",
            "Look for weights that are 0 above this layer: a product with 0 has no gradient.",
        ),
    ),
    "growth over depth": (
        {"pre_grad_norm": [[1, 1e4, 1e4, 10, 1, 1]] * 3 + [[1] * 6] * 2, "loss": (2.31, 2.3)},
        Verdict(
            "exploding",
            "note",
            HIDDEN[1:5],
            (0, 20),
            4.0,
            3.0,
            "decades",
            "Going back from hidden.5 to hidden.2 the gradient grows by 4.0 decades, at 3 of 5 "
            "probes, from step 0 to 20.",
            SMALLER_INIT,
        ),
    ),
    "growth over time": (
        {"columns": {"steps.grad_norm": [0.5] * 23 + [1234.0] + [1e-3] * 16}, **LOST},
        Verdict(
            "exploding",
            "critical",
            (),
            (23, 23),
            2468.0,
            1000.0,
            "times its start",
            "The gradient of all parameters rose to 2.47e+03 times its start at step 23.",
            "Take a smaller learning rate, warm it up, or clip by norm: a gradient that grows "
            "while training goes on comes from steps that overshoot.",
        ),
    ),
    "large updates": (
        {
            "steps": 20,
            "columns": {"gradients.update_norm": [0.4, 1.0, 0.4, 2.4, 0.4, 0.4]},
            **LOST,
        },
        Verdict(
            "exploding",
            "critical",
            ("hidden.2", "hidden.4"),
            (0, 19),
            0.6,
            0.2,
            "of the weights",
            "One update changes the weights of hidden.2 and hidden.4 by up to 60 % of their norm "
            "(median over the steps).",
            "Take a smaller learning rate, warm it up, or clip by norm: near 0.1 % is usual, and a "
            "layer rewritten at every step keeps nothing of what it learned.",
        ),
    ),
    "a loss that is nan": (
        {"non_finite_from": 7, **LOST},
        Verdict(
            "diverged",
            "critical",
            (),
            (7, 7),
            math.inf,
            FLOAT32_MAX,
            "",
            "The loss is not finite from step 7 on.",
            NOT_FINITE,
        ),
    ),
    "an infinite weight": (
        {"columns": {"gradients.weight_norm": [1, 1, np.inf, 1, np.inf, 1]}, **LOST},
        Verdict(
            "exploding",
            "critical",
            ("hidden.3",),
            (0, 0),
            math.inf,
            FLOAT32_MAX,
            "",
            "The weight of hidden.3 is not finite from step 0 on.",
            NOT_FINITE,
        ),
    ),
    "a loss that rose": (
        {"columns": {"steps.loss": np.repeat((3.0, 4.0, 5.0, 7.5), 10)}, **LOST},
        Verdict(
            "diverged",
            "critical",
            (),
            (30, 40),
            2.5,
            2.0,
            "times its start",
            "The training loss rose from 3 to 7.5; a constant guess costs 2.3.",
            "Take a smaller learning rate, or warm it up: steps that raise the loss overshoot.",
        ),
    ),
    "training that does not move": (
        {"update_ratio": 0.9e-5, "columns": {"steps.loss": QUARTERS}, "accuracy": (0.1, 0.1)},
        Verdict(
            "stalled",
            "critical",
            (),
            (0, 40),
            0.0,
            0.02,
            "of the loss of a constant guess",
            "The training loss went from 2.4 to 2.38 in 40 steps; a constant guess costs 2.3.",
            LARGER_STEPS.format("9e-06"),
        ),
    ),
    "training that moves in vain": (
        {"update_ratio": 1e-5, "loss": (2.28, 2.28), "accuracy": (0.1, 0.1)},
        Verdict(
            "stalled",
            "critical",
            (),
            (0, 40),
            1 - 2.28 / math.log(10),
            0.02,
            "of the loss of a constant guess",
            "The training loss went from 2.28 to 2.28 in 40 steps; a constant guess costs 2.3.",
            "Change init, norm or optimizer before training longer: the weights move by 1e-05 of "
            "their norm per step and still nothing is learned.",
        ),
    ),
    "training without one update": (
        {"columns": {"gradients.update_norm": [[None] * 6]}, **LOST},
        Verdict(
            "stalled",
            "critical",
            (),
            (0, 40),
            1 - 2.3 / math.log(10),
            0.02,
            "of the loss of a constant guess",
            "The training loss went from 2.31 to 2.3 in 40 steps; a constant guess costs 2.3.",
            LARGER_STEPS.format("0"),
        ),
    ),
    "dead layers": (
        {"dead": {2: [0, 16, 9, 16, 16], 4: [0, 0, 0, 16, 16], 5: [16, 16, 9, 9, 0]}, **GOOD},
        Verdict(
            "dying",
            "critical",
            ("hidden.2", "hidden.4"),
            (10, 40),
            1.0,
            1.0,
            "of a layer's units",
            "Every unit of hidden.2 and hidden.4 is dead, first seen at step 10.",
            REVIVE,
        ),
    ),
    "dead units": (
        {"dead": {1: [0, 0, 9, 9, 9], 2: [5, 5, 6, 9, 15], 3: [3] * 5}, **LOST},
        Verdict(
            "dying",
            "note",
            HIDDEN[:3],
            (0, 40),
            27 / 80,
            0.5,
            "of the units",
            "27 units (34 %) are dead, 8 of them since step 0, most in hidden.2.",
            "Take a smaller learning rate, leaky_relu or batch norm: a dead unit has no gradient "
            "of its own and adds nothing to the net.",
        ),
    ),
    "saturation": (
        {
            "columns": {
                "layers.activation": ["relu", "tanh", "sigmoid", "tanh", "tanh", "none"],
                "layers.bounded": [0, 1, 1, 1, 1, None],
                "layers.flat": ["-inf..0", "", "", "", "", ""],
                "signal.saturated_fraction": [0.9, 0.4, 0.6, 0.714, 0.2, None],
            },
            **LOST,
        },
        Verdict(
            "saturated",
            "critical",
            ("hidden.3", "hidden.4"),
            (0, 40),
            0.714,
            0.5,
            "of the values",
            "Up to 71 % of the values in hidden.3 and hidden.4 lie where sigmoid is flat, at all 5 "
            "probes.",
            SATURATED,
        ),
    ),
    "health": (
        GOOD,
        Verdict(
            HEALTHY,
            "note",
            (),
            (0, 40),
            (0.95 - 0.1) / 0.9,
            0.0,
            "of the way from chance to perfect accuracy",
            "No rule raised an alarm; training came 94 % of the way from chance to perfect "
            "accuracy.",
            "Nothing to do.",
        ),
    ),
}


@pytest.mark.parametrize(("shown", "expected"), CASES.values(), ids=CASES)
def test_a_verdict_word_for_word(tmp_path: Path, shown: Shown, expected: Verdict) -> None:
    found = verdicts(tmp_path, **shown)[expected.name].as_dict()
    assert found.pop("figure") == pytest.approx(expected.figure, rel=1e-5)
    assert found == {k: v for k, v in expected.as_dict().items() if k != "figure"}


def test_an_exploding_run_that_is_not_finite_says_so_under_both_names(tmp_path: Path) -> None:
    found = verdicts(tmp_path, non_finite_from=7, **LOST)
    assert found["exploding"].finding == found["diverged"].finding
    assert found["exploding"].level == "critical"


def test_where_accuracy_was_not_recorded_the_loss_says_how_far_it_came(tmp_path: Path) -> None:
    losses = [2.0] * 20 + [0.5] * 20
    columns = {"steps.accuracy": [math.nan] * 40, "steps.loss": losses}
    found = verdicts(tmp_path / "told", steps=40, columns=columns)[HEALTHY]
    assert found.finding == "No rule raised an alarm; training removed 75 % of its first loss."
    assert (found.figure, found.unit) == (0.75, "of the first loss")
    columns = {"steps.accuracy": [math.nan] * 3, "steps.loss": losses[:3]}
    found = verdicts(tmp_path / "too short to say", steps=3, columns=columns)[HEALTHY]
    assert found.finding == "No rule raised an alarm in 3 steps."
    assert math.isnan(found.figure)


def test_a_verdict_names_whole_steps(tmp_path: Path) -> None:
    """Three quarters of 30 steps are 22."""
    found = verdicts(tmp_path, steps=30, columns={"steps.loss": [2.0] * 20 + [9.0] * 10})
    assert found["diverged"].steps == (22, 30)
    assert all(type(step) is int for verdict in found.values() for step in verdict.steps)


def test_a_run_that_was_only_observed_has_no_skill_to_speak_of(tmp_path: Path) -> None:
    found = verdicts(tmp_path, steps=0, probes=1)[HEALTHY]
    assert found.finding == "No rule raised an alarm at initialization."
    assert found.steps == (0, 0)
    assert math.isnan(found.figure)


def test_the_cause_of_a_zero_is_sought_in_the_last_layer_that_gets_none(tmp_path: Path) -> None:
    zero = [0, 0, 0, 1, 1, 1]
    flat = {"units.inactive_fraction": [0, 0, 1, 0, 0, None]}
    found = verdicts(tmp_path / "flat", pre_grad_norm=zero, columns=flat, **LOST)["vanishing"]
    assert "because hidden.3 is flat for every example" in found.finding
    nearly = {"units.inactive_fraction": [1, 1, 0.999, 0, 0, None]}
    found = verdicts(tmp_path / "nearly", pre_grad_norm=zero, columns=nearly, **LOST)["vanishing"]
    assert "because what follows hidden.3 passes nothing back" in found.finding
    dead = {2: [16] * 5, 3: [15] * 5}
    found = verdicts(tmp_path / "dead", pre_grad_norm=zero, dead=dead, **LOST)["vanishing"]
    assert "because what follows hidden.3 passes nothing back" in found.finding


@pytest.mark.parametrize(
    ("flat", "named"),
    [
        (0.1999, "from hidden.5 to hidden.2"),  # 5 % of 4 decades
        (0.2001, "from readout to hidden.1"),
    ],
)
def test_flat_ends_are_left_out_of_a_fall(tmp_path: Path, flat: float, named: str) -> None:
    profile = 10.0 ** np.array([-4, -4 + flat, -3, -1, -flat, 0])
    found = verdicts(tmp_path, pre_grad_norm=profile, **LOST)["vanishing"]
    assert named in found.finding


@pytest.mark.parametrize(("layers", "how"), [(3, "hardly any elsewhere"), (4, "1 per layer")])
def test_a_fall_over_most_layers_is_told_per_layer(tmp_path: Path, layers: int, how: str) -> None:
    profile = 10.0 ** np.append(np.linspace(-4, 0, layers + 1), [0.0] * (5 - layers))
    found = verdicts(tmp_path, pre_grad_norm=profile, **LOST)["vanishing"]
    assert f"the gradient falls by 4.0 decades ({how})" in found.finding


@pytest.mark.parametrize("norm", [1.0, 1e-3])
def test_the_layers_of_a_fall_are_those_below_the_limit(tmp_path: Path, norm: float) -> None:
    profile = norm * np.array([1e-4, 1e-3, 1.1e-3, 1e-4, 1, 0.1])
    found = verdicts(tmp_path, pre_grad_norm=profile, **LOST)["vanishing"]
    assert found.layers == ("hidden.1", "hidden.2", "hidden.4")


def test_the_last_probe_that_shows_a_sign_is_told(tmp_path: Path) -> None:
    falls = [10.0 ** np.linspace(-d, 0, 6) for d in (5, 6, 4, 1, 1)]
    rises = [1 / fall for fall in falls]
    assert verdicts(tmp_path / "1", pre_grad_norm=falls, **LOST)["vanishing"].figure == 4
    assert verdicts(tmp_path / "2", pre_grad_norm=rises, **LOST)["exploding"].figure == 4
    share = {"signal.saturated_fraction": np.array([[0.9], [0.6], [0.1], [0.1], [0.1]])}
    found = verdicts(tmp_path / "3", activation="tanh", columns=share, **LOST)["saturated"]
    assert found.figure == 0.6


def test_what_training_does_is_advised_by_its_typical_update(tmp_path: Path) -> None:
    norms = np.where(np.arange(40)[:, None] % 2, 4e-6, [4e-6, 4e-6, 4e-6, 4e-6, 4.0, 4.0])
    columns = {"gradients.update_norm": norms}
    assert "only 1e-06 of" in verdicts(tmp_path, columns=columns, **LOST)["stalled"].advice


def test_sicknesses_of_one_level_are_named_in_a_fixed_order(tmp_path: Path) -> None:
    shown: Shown = {
        "activation": "tanh",
        "saturated": 0.9,
        "decay": 1.0,
        "grad_norm_growth": 1e5,
        "columns": {"steps.loss": QUARTERS, "units.dead": [16, 16, 16, 0, 0, 0]},
        "accuracy": (0.1, 0.1),
    }
    assert list(verdicts(tmp_path, **shown)) == [
        "exploding",
        "vanishing",
        "dying",
        "saturated",
        "stalled",
    ]


def test_critical_comes_before_a_note_and_health_before_both(tmp_path: Path) -> None:
    gone = [10.0 ** np.arange(-5, 1), *[np.ones(6)] * 4]
    run = Fabricated(pre_grad_norm=gone, **LOST).write(tmp_path / "sick")
    assert [(v.name, v.level) for v in judge(run)] == [
        ("stalled", "critical"),
        ("vanishing", "note"),
    ]
    run = Fabricated(pre_grad_norm=gone, **GOOD).write(tmp_path / "well")
    assert [v.name for v in judge(run)] == [HEALTHY, "vanishing"]


def test_of_one_name_the_worst_is_kept(tmp_path: Path) -> None:
    # Exploding over depth is a note here, exploding over time critical.
    gone = [10.0 ** -np.arange(-5, 1), *[np.ones(6)] * 4]
    found = verdicts(tmp_path, pre_grad_norm=gone, grad_norm_growth=1e5, **LOST)["exploding"]
    assert (found.level, found.unit) == ("critical", "times its start")


def test_no_rules_no_alarm(tmp_path: Path) -> None:
    run = Fabricated(non_finite_from=3).write(tmp_path / "run")
    assert [v.name for v in judge(run, [])] == [HEALTHY]


def test_a_registered_rule_is_applied(tmp_path: Path) -> None:
    @RULES.register("always")
    def always(evidence: Evidence) -> Verdict:
        """Cry wolf."""
        return Verdict("dying", "warning", (), (0, 0), len(evidence.layers), 0, "", "A.", "B.")

    try:
        assert judge(Fabricated(**GOOD).write(tmp_path / "run"))[0].figure == 6
    finally:
        RULES.remove("always")


def test_a_report_in_json_holds_verdicts_with_all_that_supports_them(tmp_path: Path) -> None:
    sick, blown = tmp_path / "sick", tmp_path / "blown"
    shown, expected = CASES["decay of sigmoid layers"]
    Fabricated(**shown).write(sick)
    Fabricated(non_finite_from=7, **LOST).write(blown)
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--format", "json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)["runs"]
    first = found[str(sick.resolve())][0]
    wanted = expected.as_dict() | {"layers": list(expected.layers), "steps": [0, 40]}
    assert first == wanted
    assert [verdict["name"] for verdict in found[str(sick.resolve())]] == ["vanishing", "stalled"]
    assert [(v["name"], v["figure"]) for v in found[str(blown.resolve())]] == [
        ("diverged", "inf"),
        ("exploding", "inf"),
    ]


READINGS: dict[str, tuple[Shown, str]] = {
    "healthy": (
        {"pre_grad_norm": [0.25, 1, 1, 1, 1, 2.0], **GOOD},
        (
            "6 layers (relu) reached training accuracy 95.0 %, test 93.0 % in 40 steps "
            "(chance 10 %). Healthy: the gradient at hidden.1 is 0.12 times that at readout."
        ),
    ),
    "two activations, three classes, many steps, no test": (
        {
            "depth": 4,
            "steps": 1200,
            "columns": {
                "layers.activation": ["tanh", "identity", "relu", "none"],
                "layers.units": [8, 8, 8, 3],
                "gradients.grad_norm": 1.0,
                "epochs.test_accuracy": [None],
                "signal.pre_grad_norm": [[1, 1, 1, 1]] * 4 + [[6, 1, 1, 2]],
            },
            **GOOD,
        },
        (
            "4 layers (tanh/relu) reached training accuracy 95.0 % in 1,200 steps (chance 33.3 %). "
            "Healthy: the gradient at hidden.1 is 3 times that at readout."
        ),
    ),
    "linear": (
        {"activation": "identity", "steps": 0, "probes": 1, "decay": 0.0},
        (
            "6 layers (linear) were observed at initialization. Healthy: the gradient at hidden.1 "
            "is 1 times that at readout."
        ),
    ),
    "sick": (
        {"dead": {2: [0, 16, 16, 16, 16]}, **GOOD},
        (
            "6 layers (relu) reached training accuracy 95.0 %, test 93.0 % in 40 steps "
            "(chance 10 %). Dying: Every unit of hidden.2 is dead, first seen at step 10."
        ),
    ),
    "diverged": (
        {"non_finite_from": 7, **LOST},
        "6 layers (relu) diverged at step 7. Diverged: The loss is not finite from step 7 on.",
    ),
}


@pytest.mark.parametrize(("shown", "expected"), READINGS.values(), ids=READINGS)
def test_the_reading_word_for_word(tmp_path: Path, shown: Shown, expected: str) -> None:
    assert read_aloud(Fabricated(**shown).write(tmp_path / "run")) == expected


def test_a_run_without_probes_is_read_all_the_same(tmp_path: Path) -> None:
    run = Fabricated(**GOOD).write(tmp_path / "run")
    run.table_path("signal").unlink()
    assert read_aloud(run).endswith("(chance 10 %). Healthy: no rule raised an alarm.")
    run.table_path("layers").unlink()
    assert read_aloud(run).startswith("0 layers (linear) reached training accuracy 95.0 %")
