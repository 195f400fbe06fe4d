"""Verdicts: each sickness from tables with a known one, and no alarm for what only looks sick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradexp.analysis import HEALTHY, RULES, VERDICTS, judge, load_rules
from gradexp.errors import ConfigError
from tests.fabricated_runs import GOOD, LOST, Fabricated, read_aloud, verdicts


def alarms(path: Path, **shown: Any) -> set[str]:
    return {name for name, verdict in verdicts(path, **shown).items() if verdict.alarm}


def test_a_healthy_run(tmp_path: Path) -> None:
    found = verdicts(tmp_path, **GOOD)
    assert list(found) == [HEALTHY]
    assert not found[HEALTHY].alarm


def test_geometric_decay_vanishes(tmp_path: Path) -> None:
    found = verdicts(tmp_path, activation="sigmoid", depth=12, decay=0.6, **LOST)
    vanishing = found["vanishing"]
    assert vanishing.level == "critical"
    assert vanishing.figure == pytest.approx(6.6)
    assert (vanishing.limit, vanishing.unit) == (3.0, "decades")
    assert vanishing.layers[0] == "hidden.1"
    assert "hidden.12" not in vanishing.layers
    assert vanishing.steps == (0, 40)
    assert "0.6 per layer" in vanishing.finding
    assert "sigmoid" in vanishing.advice


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e9])
def test_verdicts_do_not_depend_on_the_size_of_gradients(tmp_path: Path, scale: float) -> None:
    sick = scale * 10.0 ** np.arange(-8, 1)
    assert "vanishing" in alarms(tmp_path / "sick", depth=9, pre_grad_norm=sick, **LOST)
    flat = scale * np.ones(9)
    assert "vanishing" not in alarms(tmp_path / "flat", depth=9, pre_grad_norm=flat, **LOST)


def test_decay_in_a_run_that_learns_is_a_note(tmp_path: Path) -> None:
    found = verdicts(tmp_path, depth=12, decay=0.5, **GOOD)
    assert found["vanishing"].level == "note"
    assert HEALTHY in found


def test_decay_that_training_removed_is_a_note(tmp_path: Path) -> None:
    steep, flat = 10.0 ** np.arange(-8, 1), np.ones(9)
    profile = np.array([steep, steep, steep, flat, flat])
    found = verdicts(tmp_path, depth=9, pre_grad_norm=profile, loss=(2.3, 1.8), accuracy=(0.1, 0.4))
    assert found["vanishing"].level == "note"
    assert found["vanishing"].steps == (0, 20)


def test_a_collapse_in_middle_layers_is_found_and_named(tmp_path: Path) -> None:
    profile = [1e-6] * 5 + [1e-4, 1e-2] + [1.0] * 9
    vanishing = verdicts(tmp_path, depth=16, pre_grad_norm=profile, **LOST)["vanishing"]
    assert "from hidden.8 to hidden.5" in vanishing.finding
    assert vanishing.layers == tuple(f"hidden.{i}" for i in range(1, 7))


def test_an_exact_zero_names_its_cause(tmp_path: Path) -> None:
    dead = {3: [0, 9, 16, 16, 16]}
    found = verdicts(tmp_path, dead=dead, pre_grad_norm=[0, 0, 0, 0.5, 0.7, 1], **LOST)
    assert "exactly 0 in hidden.1 to hidden.3" in found["vanishing"].finding
    assert "every unit of hidden.3 is dead" in found["vanishing"].finding
    assert found["dying"].level == "critical"
    assert found["dying"].layers == ("hidden.3",)
    assert found["dying"].steps == (20, 40)


def test_underflow_is_decay_not_dead_units(tmp_path: Path) -> None:
    profile = [0.0, 0.0, *10.0 ** np.arange(-44, 1, 4)]
    vanishing = verdicts(tmp_path, depth=14, pre_grad_norm=profile, **LOST)["vanishing"]
    assert vanishing.unit == "decades"
    assert vanishing.figure == pytest.approx(44)


def test_growth_toward_the_input_explodes(tmp_path: Path) -> None:
    found = verdicts(tmp_path, depth=12, decay=-0.6, **LOST)
    assert found["exploding"].level == "critical"
    assert "vanishing" not in found


def test_growth_over_time_explodes(tmp_path: Path) -> None:
    found = verdicts(tmp_path, grad_norm_growth=1e7, **LOST)
    assert "times its start" in found["exploding"].finding


def test_updates_as_large_as_weights_explode(tmp_path: Path) -> None:
    assert "exploding" in alarms(tmp_path, update_ratio=0.7, **LOST)


@settings(max_examples=20, deadline=None)
@given(decay=st.floats(-2, 2), at=st.integers(0, 39))
def test_non_finite_values_are_never_vanishing(
    tmp_path_factory: pytest.TempPathFactory, decay: float, at: int
) -> None:
    path = tmp_path_factory.mktemp("run")
    found = verdicts(path, depth=12, decay=decay, non_finite_from=at, **LOST)
    assert {"diverged", "exploding"} <= set(found)
    assert "vanishing" not in found
    assert found["diverged"].steps == (at, at)


def test_a_loss_that_ends_far_above_its_start_diverged(tmp_path: Path) -> None:
    assert "diverged" in alarms(tmp_path, loss=(2.3, 80.0), accuracy=(0.1, 0.1))


def test_half_zeros_without_a_dead_unit_is_healthy(tmp_path: Path) -> None:
    assert not alarms(tmp_path, **GOOD)  # fabricated relu layers are inactive half of the time


@pytest.mark.parametrize(("dead", "level"), [(1, None), (6, "note"), (12, "note")])
def test_dead_units_in_a_run_that_learns(tmp_path: Path, dead: int, level: str | None) -> None:
    counts = {i: [dead] * 5 for i in range(1, 6)}
    found = verdicts(tmp_path, dead=counts, **GOOD)
    assert (found["dying"].level if "dying" in found else None) == level


def test_many_dead_units_in_a_run_that_does_not_learn(tmp_path: Path) -> None:
    counts = {i: [0, 4, 8, 12, 12] for i in range(1, 6)}
    dying = verdicts(tmp_path, dead=counts, **LOST)["dying"]
    assert dying.level == "critical"
    assert dying.figure == pytest.approx(0.75)


def test_a_wholly_dead_layer_is_critical_even_beside_shortcuts(tmp_path: Path) -> None:
    found = verdicts(tmp_path, dead={2: [0, 16, 16, 16, 16]}, **GOOD)
    assert found["dying"].level == "critical"


def test_a_dead_layer_that_revived_is_no_alarm(tmp_path: Path) -> None:
    assert not alarms(tmp_path, dead={2: [16, 16, 4, 0, 0]}, **GOOD)


def test_saturation_counts_for_bounded_activations_alone(tmp_path: Path) -> None:
    assert "saturated" in alarms(tmp_path / "tanh", activation="tanh", saturated=0.8, **LOST)
    assert "saturated" not in alarms(tmp_path / "relu", saturated=0.8, **LOST)


def test_a_run_that_never_began_to_learn_stalled(tmp_path: Path) -> None:
    stalled = verdicts(tmp_path, update_ratio=1e-9, **LOST)["stalled"]
    assert "Raise the learning rate" in stalled.advice


def test_a_run_that_has_learned_all_there_is_did_not_stall(tmp_path: Path) -> None:
    assert not alarms(tmp_path, loss=(0.01, 0.01), accuracy=(1.0, 1.0))


def test_a_run_that_is_still_getting_better_did_not_stall(tmp_path: Path) -> None:
    run = Fabricated(steps=40, loss=(20.0, 3.0), accuracy=(0.1, 0.1))
    found = {v.name for v in judge(run.write(tmp_path / "run")) if v.alarm}
    assert "diverged" not in found


def test_observing_at_initialization_judges_the_one_probe(tmp_path: Path) -> None:
    found = verdicts(tmp_path, steps=0, probes=1, depth=12, decay=0.6)
    assert found["vanishing"].level == "warning"
    assert "at step 0" in found["vanishing"].finding
    assert "stalled" not in found


def test_the_worst_verdict_comes_first(tmp_path: Path) -> None:
    run = Fabricated(activation="sigmoid", depth=12, decay=0.6, **LOST).write(tmp_path / "run")
    names = [verdict.name for verdict in judge(run)]
    assert names == ["vanishing", "stalled"]


def test_limits_come_from_a_file(tmp_path: Path) -> None:
    run = Fabricated(depth=12, decay=0.3, **LOST).write(tmp_path / "run")
    assert judge(run)[0].name == "vanishing"
    file = tmp_path / "rules.yaml"
    file.write_text("vanishing: {decades: 5}\nstalled: false\n")
    assert [verdict.name for verdict in judge(run, load_rules(file))] == [HEALTHY]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vanish: {decades: 5}", "Did you mean 'vanishing'?"),
        ("vanishing: {decade: 5}", "Did you mean 'decades'?"),
        ("vanishing: {decades: -1}", "vanishing.decades: Input should be greater than 0, got -1"),
        ("vanishing: {decades: many}", "vanishing.decades"),
        ("vanishing: 5", "must be limits such as"),
        ("[1, 2]", "expected keys and values, got [1, 2]"),
        ("a: [", "is not valid YAML"),
        ("dying: {share: 0.3}\ndying: {share: 0.5}", ":2  dying: stands twice"),
        ("# limits\n\ndying:\n  sahre: 0.3", ":4  dying.sahre: no such limit"),
        ("dying: {share: 0.3}\nexploding_time: {ratio: no}", ":2  exploding_time.ratio: "),
    ],
)
def test_mistakes_in_a_rules_file_are_named(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_rules(file)
    assert expected in str(caught.value)
    assert str(file) in str(caught.value)


def test_all_mistakes_in_a_rules_file_are_listed_at_once(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("vanish: {}\ndying: {share: 7, nothing: 1}\n")
    with pytest.raises(ConfigError) as caught:
        load_rules(file)
    assert len(str(caught.value).splitlines()) == 3


def test_every_rule_describes_itself_and_has_typed_limits() -> None:
    for entry in RULES:
        assert entry.help, entry.name
        assert all(option.default is not None for option in entry.options), entry.name


def test_verdicts_are_plain_data(tmp_path: Path) -> None:
    for verdict in verdicts(tmp_path, activation="sigmoid", depth=12, decay=0.6, **LOST).values():
        assert verdict.name in VERDICTS
        assert verdict.finding.endswith(".")
        assert verdict.advice.endswith(".")
        assert set(verdict.as_dict()) >= {"name", "level", "layers", "steps", "figure", "limit"}


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (
            {"activation": "sigmoid", "depth": 12, "decay": 0.6, **LOST},
            "Vanishing: Going back from",
        ),
        ({"non_finite_from": 5, **LOST}, "diverged at step 5"),
        ({"steps": 0, "probes": 1}, "observed at initialization"),
        (GOOD, "training accuracy 95.0 %, test 93.0 % in 40 steps (chance 10 %). Healthy"),
    ],
)
def test_the_reading_is_one_line_with_figures(
    tmp_path: Path, shown: dict[str, Any], expected: str
) -> None:
    text = read_aloud(Fabricated(**shown).write(tmp_path / "run"))
    assert expected in text
    assert "\n" not in text
