"""Activations: values and slopes against their closed forms, and what is said of their shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch

from gradexp.errors import ConfigError
from gradexp.nn import ACTIVATIONS
from tests.nets import config_of, run_of

INF = math.inf
POINTS = [
    -40.0,
    -8.0,
    -3.5,
    -2.0,
    -1.5,
    -1.0,
    -0.5,
    -0.01,
    0.01,
    0.5,
    1.5,
    2.0,
    3.5,
    5.5,
    8.0,
    40.0,
]
Real = Callable[[float], float]
NORMAL = NormalDist()
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def leaky(slope: float) -> tuple[Real, Real]:
    return lambda x: x if x > 0 else slope * x, lambda x: 1.0 if x > 0 else slope


def elu(alpha: float, scale: float = 1.0) -> tuple[Real, Real]:
    return (
        lambda x: scale * (x if x > 0 else alpha * (math.exp(x) - 1)),
        lambda x: scale * (1.0 if x > 0 else alpha * math.exp(x)),
    )


def limited(low: float, high: float, slope: float = 1.0, shift: float = 0.0) -> tuple[Real, Real]:
    """Slope * x + shift within [low, high] of its argument, level outside."""
    return (
        lambda x: slope * min(max(x, low), high) + shift,
        lambda x: slope if low < x < high else 0.0,
    )


def hardswish_slope(x: float) -> float:
    return 0.0 if x < -3 else 1.0 if x > 3 else x / 3 + 0.5


CASES: dict[str, tuple[str, dict[str, Any], tuple[Real, Real]]] = {
    "identity": ("identity", {}, (lambda x: x, lambda _x: 1.0)),
    "sigmoid": ("sigmoid", {}, (sigma, lambda x: sigma(x) * sigma(-x))),
    "tanh": ("tanh", {}, (math.tanh, lambda x: 1 / math.cosh(x) ** 2)),
    "relu": ("relu", {}, leaky(0.0)),
    "relu6": ("relu6", {}, limited(0.0, 6.0)),
    "leaky_relu": ("leaky_relu", {}, leaky(0.01)),
    "leaky_relu 0.3": ("leaky_relu", {"negative_slope": 0.3}, leaky(0.3)),
    "leaky_relu 0": ("leaky_relu", {"negative_slope": 0.0}, leaky(0.0)),
    "prelu": ("prelu", {}, leaky(0.25)),
    "prelu 0.7": ("prelu", {"initial_slope": 0.7}, leaky(0.7)),
    "elu": ("elu", {}, elu(1.0)),
    "elu 0.4": ("elu", {"alpha": 0.4}, elu(0.4)),
    "selu": ("selu", {}, elu(SELU_ALPHA, SELU_SCALE)),
    "softplus": ("softplus", {}, (lambda x: math.log1p(math.exp(-abs(x))) + max(x, 0.0), sigma)),
    "silu": (
        "silu",
        {},
        (lambda x: x * sigma(x), lambda x: sigma(x) * (1 + x * sigma(-x))),
    ),
    "gelu": (
        "gelu",
        {},
        (lambda x: x * NORMAL.cdf(x), lambda x: NORMAL.cdf(x) + x * NORMAL.pdf(x)),
    ),
    "hardtanh": ("hardtanh", {}, limited(-1.0, 1.0)),
    "hardsigmoid": ("hardsigmoid", {}, limited(-3.0, 3.0, 1 / 6, 0.5)),
    "hardswish": (
        "hardswish",
        {},
        (lambda x: x * min(max(x + 3, 0.0), 6.0) / 6, hardswish_slope),
    ),
}


def test_every_activation_has_a_closed_form() -> None:
    assert {name for name, _, _ in CASES.values()} == set(ACTIVATIONS.names())
    with_options = {name for name, options, _ in CASES.values() if options}
    assert with_options == {entry.name for entry in ACTIVATIONS if entry.options}


@pytest.mark.parametrize("case", CASES)
def test_values_and_slopes(case: str) -> None:
    """For each of three units alike, and without changing what it was given."""
    name, options, (value, slope) = CASES[case]
    module = ACTIVATIONS[name].factory(**options).module(3).double()
    points = torch.tensor(POINTS, dtype=torch.float64).view(-1, 1).repeat(1, 3).requires_grad_()
    values = module(points)
    (slopes,) = torch.autograd.grad(values.sum(), points)
    assert points[:, 0].tolist() == POINTS
    for index, x in enumerate(POINTS):
        assert values[index].tolist() == pytest.approx([value(x)] * 3, rel=1e-7, abs=1e-12), x
        assert slopes[index].tolist() == pytest.approx([slope(x)] * 3, rel=1e-7, abs=1e-12), x


@pytest.mark.parametrize("units", [1, 5])
def test_prelu_learns_a_slope_for_each_unit(units: int) -> None:
    module = ACTIVATIONS["prelu"].factory(initial_slope=0.5).module(units)
    assert [one.tolist() for one in module.parameters()] == [[0.5] * units]
    with torch.no_grad():
        next(module.parameters()).copy_(torch.arange(float(units)))
    assert module(-torch.ones(1, units)).tolist() == [[-float(unit) for unit in range(units)]]


@pytest.mark.parametrize("name", ACTIVATIONS.names())
def test_only_prelu_has_something_to_learn(name: str) -> None:
    module = ACTIVATIONS[name].factory().module(4)
    assert sum(one.numel() for one in module.parameters()) == (4 if name == "prelu" else 0)


# --- what is said of their shape -------------------------------------------------------------

LEFT = (-INF, 0.0)
FLAT: dict[str, tuple[tuple[float, float], ...]] = {
    "relu": (LEFT,),
    "relu6": (LEFT, (6.0, INF)),
    "leaky_relu 0": (LEFT,),
    "hardtanh": ((-INF, -1.0), (1.0, INF)),
    "hardsigmoid": ((-INF, -3.0), (3.0, INF)),
    "hardswish": ((-INF, -3.0),),
}
SLOPES = {
    "identity": 1.0,
    "leaky_relu": 0.01,
    "leaky_relu 0.3": 0.3,
    "prelu": 0.25,
    "prelu 0.7": 0.7,
}
# Where the derivative is 0, solved to the last digit; prelu's is where a learned slope may turn.
TURNS = {
    "prelu": (0.0,),
    "prelu 0.7": (0.0,),
    "silu": (-1.2784645427610738,),
    "gelu": (-0.7517915246935645,),
    "hardswish": (-1.5,),
}
STEEP = {"identity", "relu", "relu6", "hardtanh", "hardsigmoid"}


@pytest.mark.parametrize("case", CASES)
def test_facts(case: str) -> None:
    name, options, _ = CASES[case]
    facts = ACTIVATIONS[name].factory(**options)
    assert facts.flat == FLAT.get(case, ())
    assert facts.slope == SLOPES.get(case, 0.0)
    assert facts.turns == pytest.approx(TURNS.get(case, ()), abs=1e-12)
    assert facts.steep == (case in STEEP)


@pytest.mark.parametrize("case", CASES)
def test_facts_follow_from_the_closed_form(case: str) -> None:
    """On a fine grid: level exactly where it is flat, steep where it says so, turning at turns."""
    name, options, (_, slope) = CASES[case]
    facts = ACTIVATIONS[name].factory(**options)
    grid = [index / 64 + 1 / 128 for index in range(-9 * 64, 9 * 64)]
    for x in grid:
        assert (slope(x) == 0) == any(low <= x <= high for low, high in facts.flat), x
    if facts.steep:
        assert all(abs(slope(x)) >= 0.02 or slope(x) == 0 for x in grid)
    for turn in facts.turns:
        assert slope(turn - 1e-3) < 0 < slope(turn + 1e-3) or name == "prelu"


@pytest.mark.parametrize(
    ("activation", "counted"),
    [
        ("relu", True),
        ("{name: leaky_relu, negative_slope: 0}", True),
        ("{name: leaky_relu, negative_slope: 0.1}", False),
        ("hardswish", True),
        ("elu", False),
    ],
)
def test_dead_units_are_counted_where_an_activation_is_flat(
    tmp_path: Path, activation: str, counted: bool
) -> None:
    run = run_of(tmp_path, f"model.activation={activation}", "train.steps=0")
    *hidden, readout = run.read("units")["dead"].notna().tolist()
    assert hidden == [counted] * len(hidden)
    assert not readout


@pytest.mark.parametrize(
    "activation",
    [
        "{name: leaky_relu, negative_slope: -0.1}",
        "{name: prelu, initial_slope: -0.1}",
        "{name: elu, alpha: 0}",
    ],
)
def test_options_out_of_range_are_refused(activation: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.activation"):
        config_of(f"model.activation={activation}")
