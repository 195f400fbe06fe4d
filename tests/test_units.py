"""The ledger: against slow float64 looks, and nets whose dead units are known by construction."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from gradexp.nn import ACTIVATIONS, MODELS, Activation
from gradexp.nn.inits import Init
from gradexp.nn.network import Network, Parts, build
from gradexp.probes import Prober, ProbeRows
from gradexp.probes.activity import inactive
from gradexp.probes.signal import SATURATED_BELOW
from gradexp.records import RunDir
from tests.probing import prober
from tests.reference import ACTIVATION, CASES, Reference, config_of, run_of

FLAT = {"relu", "relu6", "hardtanh", "hardsigmoid", "hardswish"}
COUNTS = ["dead", "born_dead", "died", "revived", "certified_dead"]


@pytest.fixture(scope="module", params=[*CASES, "dying", "dying cnn", "dying mobilenet"])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunDir, Reference]:
    folder = tmp_path_factory.mktemp("case")
    dying = "model.init={name: kaiming_normal, bias_std: 3.0}"
    extra = {
        "dying": ("model={family: mlp, depth: 4, width: 9}", dying, "train.optimizer.lr=1.0"),
        "dying cnn": (*CASES["cnn relu"], dying, "train.optimizer.lr=0.5", "train.clip=none"),
        "dying mobilenet": (*CASES["mobilenet plain"], "model.bias=true", "model.activation=relu6"),
    }
    overrides = CASES.get(request.param) or extra[request.param]
    if request.param == "dying mobilenet":
        overrides = (*overrides, dying, "train.optimizer.lr=0.5")
    return run_of(folder, *overrides), Reference(config_of(folder, *overrides))


def test_dead_and_inactive(case: tuple[RunDir, Reference]) -> None:
    run, reference = case
    units = run.read("units")
    for step in (0, 3, 6):
        rows = units.query(f"step == {step}").itertuples()
        for row, look in zip(rows, reference.look(step), strict=True):
            assert row.units == look.pre.shape[1]
            if look.layer.spec.hidden and reference.config.model.activation.name in FLAT:
                zero = look.slope == 0
                others = tuple(axis for axis in range(zero.ndim) if axis != 1)
                assert row.dead == zero.all(others).sum()
                assert row.inactive_fraction == pytest.approx(zero.mean(), abs=2e-3)
            else:
                assert row.dead is pd.NA
                assert math.isnan(row.inactive_fraction)
            touched = np.abs(np.array(look.weight_grads)).max(0) > 0
            assert row.zero_grad_fraction == pytest.approx(1 - touched.mean(), abs=1e-9)


def test_the_books_balance(case: tuple[RunDir, Reference]) -> None:
    run, _ = case
    units, events = run.read("units"), run.read("unit_events")
    for index, layer in units.groupby("layer_index"):
        mine = events.query(f"layer_index == {index}")
        if layer["dead"].isna().any():
            assert layer[COUNTS].isna().all(axis=None)
            assert len(mine) == 0
            continue
        balance = layer["born_dead"] + layer["died"].cumsum() - layer["revived"].cumsum()
        assert layer["dead"].tolist() == balance.tolist()
        assert len(set(layer["born_dead"])) == 1
        for event in ("died", "revived"):
            counted = mine.query(f"event == '{event}'").groupby("step").size()
            expected = layer.set_index("step")[event]
            assert counted.to_dict() == expected[expected > 0].to_dict()
        born = mine.query("event == 'born_dead'")
        assert set(born["step"]) <= {0}
        assert len(born) == layer["born_dead"].iloc[0]
        assert not mine.duplicated(["step", "unit", "event"]).any()


def test_units_really_die_in_these_cases(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        "model={family: mlp, depth: 4, width: 9}",
        "model.init={name: kaiming_normal, bias_std: 3.0}",
        "train.optimizer.lr=1.0",
    )
    events = set(run.read("unit_events")["event"])
    assert {"born_dead", "died", "revived"} <= events


# --- nets by construction ----------------------------------------------------------------------


def net(
    family: str, activation: str | Activation, *, shape: tuple[int, int, int], **options: int
) -> Network:
    zero = Init(lambda tensor, *_: tensor.zero_(), lambda tensor, *_: tensor.zero_())
    plan = MODELS[family].factory(**options)
    facts = ACTIVATIONS[activation].factory() if isinstance(activation, str) else activation
    parts = Parts(facts, zero, None, None)
    return build(plan(shape, 3, 0), parts, torch.Generator())


def looking(network: Network, inputs: Tensor) -> Prober:
    return prober(network, inputs, torch.zeros(len(inputs), dtype=torch.int64), 2)


def look(network: Network, inputs: Tensor) -> ProbeRows:
    return looking(network, inputs).look(0)


def counts(rows: ProbeRows, layer: int) -> dict[str, object]:
    return dict(rows.units[layer - 1])


def events(rows: ProbeRows) -> list[tuple[int, int, str]]:
    return [(row["layer_index"], row["unit"], row["event"]) for row in rows.unit_events]  # type: ignore[misc]


PIXELS = torch.linspace(0, 1, 4).view(4, 1, 1, 1)


@pytest.mark.parametrize(
    ("activation", "bias", "dead", "certified"),
    [
        ("relu", [-2.0, -1.0, 0.0, -0.99], [0, 1], [0]),
        ("relu6", [6.0, 5.99, -1.0, 6.1], [0, 2, 3], [3]),
        ("hardtanh", [1.0, 0.99, -2.0, -2.1], [0, 2, 3], [3]),
        ("hardsigmoid", [3.0, 2.99, -4.1, -3.99], [0, 2], [2]),
        ("hardswish", [3.0, 7.0, -4.01, -3.99], [2], [2]),
    ],
)
def test_both_flat_ends(
    activation: str, bias: list[float], dead: list[int], certified: list[int]
) -> None:
    """Pre runs from bias to bias + 1: dead where all of it lies in a flat region.

    Certified only with room for rounding.
    """
    network = net("mlp", activation, shape=(1, 1, 1), depth=1, width=4)
    layer = network.layers()[0]
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.map.bias.copy_(torch.tensor(bias))
    rows = look(network, PIXELS)
    found = events(rows)
    assert [unit for _, unit, event in found if event == "born_dead"] == dead
    assert [unit for _, unit, event in found if event == "certified"] == certified
    assert counts(rows, 1)["dead"] == counts(rows, 1)["born_dead"] == len(dead)
    assert counts(rows, 1)["certified_dead"] == len(certified)


@pytest.mark.parametrize("activation", sorted(FLAT))
def test_inactive_is_where_torch_has_no_derivative(activation: str) -> None:
    """At the corners and one step of rounding beside them."""
    corners = torch.tensor([-6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0])
    steps = [corners, *(corners.nextafter(torch.tensor(end)) for end in (-math.inf, math.inf))]
    point = torch.cat(steps).requires_grad_()
    facts = ACTIVATIONS[activation].factory()
    (slope,) = torch.autograd.grad(facts.module(1)(point).sum(), point)
    assert inactive(point.detach(), facts.flat).tolist() == (slope == 0).tolist()


@pytest.mark.parametrize(
    "activation", [entry.name for entry in ACTIVATIONS if entry.factory().steep]
)
def test_steep_is_where_torch_has_no_small_derivative(activation: str) -> None:
    """Its saturated values are its inactive ones, and need not be looked for."""
    facts = ACTIVATIONS[activation].factory()
    point = torch.linspace(-9, 9, 20_001).requires_grad_()
    (slope,) = torch.autograd.grad(facts.module(1)(point[:, None]).sum(), point)
    small = slope.abs() < SATURATED_BELOW
    assert small.tolist() == inactive(point.detach(), facts.flat).bool().tolist()


@pytest.mark.parametrize("activation", [n for n in ACTIVATIONS.names() if n not in FLAT])
def test_smooth_activations_have_no_dead_units(activation: str) -> None:
    network = net("mlp", activation, shape=(1, 1, 1), depth=1, width=4)
    with torch.no_grad():
        network.layers()[0].map.bias.fill_(-100.0)
    rows = look(network, PIXELS)
    assert [counts(rows, 1).get(name) for name in COUNTS] == [None] * 5
    assert events(rows) == []


def test_a_channel_lives_by_a_single_position() -> None:
    network = net("cnn", "relu", shape=(1, 4, 4), depth=1, width=3, stages=1)
    layer = network.layers()[0]
    with torch.no_grad():
        layer.weight[:, 0, 1, 1] = 1.0
        layer.map.bias.copy_(torch.tensor([-0.5, -1.1, -0.9]))
    images = torch.zeros(3, 1, 4, 4)
    images[1, 0, 2, 3] = 0.95
    rows = look(network, images)
    assert events(rows) == [(1, 1, "born_dead"), (1, 1, "certified")]
    inactive_values = 3 * 48 - 2
    assert counts(rows, 1)["inactive_fraction"] == pytest.approx(inactive_values / (3 * 48))


def test_depthwise_channels_and_empty_kernels() -> None:
    network = net("mobilenet_v1", "relu6", shape=(1, 4, 4), depth=1, width=4, stages=1)
    stem, depthwise, pointwise, readout = network.layers()
    with torch.no_grad():
        stem.weight[:, 0, 1, 1] = 1.0
        depthwise.weight[:, 0, 1, 1] = torch.tensor([1.0, -1.0, 1e-4, 1.0])
        depthwise.map.bias.copy_(torch.tensor([0.0, 0.0, -1.0, 6.0]))
        pointwise.weight.fill_(1.0)
    rows = look(network, torch.rand(5, 1, 4, 4))
    born = [(index, unit) for index, unit, event in events(rows) if event == "born_dead"]
    assert [unit for index, unit in born if index == 2] == [1, 2, 3]
    assert counts(rows, 2)["empty_kernels"] == 1
    assert [counts(rows, index)["empty_kernels"] for index in (1, 3, 4)] == [None] * 3
    assert readout.spec.name == "readout"


def test_zero_gradients_of_weights() -> None:
    """Two of four units are dead, and one of two pixels is always 0: 3/4 of weights stopped."""
    network = net("mlp", "relu", shape=(2, 1, 1), depth=1, width=4)
    hidden, readout = network.layers()
    with torch.no_grad():
        hidden.map.bias.copy_(torch.tensor([-5.0, 1.0, 1.0, -5.0]))
        readout.weight.copy_(torch.arange(12.0).view(3, 4))
    images = torch.zeros(4, 2, 1, 1)
    images[:, 1] = PIXELS[:, 0] + 0.1
    rows = look(network, images)
    assert counts(rows, 1)["zero_grad_fraction"] == 0.75
    assert counts(rows, 2)["zero_grad_fraction"] == 0.5


def test_a_life_told_in_full() -> None:
    """Unit 0 dies, is not a number for a while, is dead again, and revives."""
    network = net("mlp", "relu", shape=(1, 1, 1), depth=1, width=2)
    ledger = looking(network, PIXELS)
    bias = network.layers()[0].map.bias
    with torch.no_grad():
        network.layers()[0].weight.fill_(1.0)
    story = []
    for step, value in enumerate([0.0, -2.0, math.nan, -2.0, -math.inf, -2.0, -0.5]):
        with torch.no_grad():
            bias.copy_(torch.tensor([value, 0.5]))
        rows = ledger.look(step)
        found = [event for _, unit, event in events(rows) if unit == 0]
        story.append((counts(rows, 1)["dead"], counts(rows, 1)["died"], found))
    assert story == [
        (0, 0, []),
        (1, 1, ["died", "certified"]),
        (0, 0, []),
        (1, 0, []),
        (0, 0, []),
        (1, 0, []),
        (0, 0, ["revived"]),
    ]


def test_nan_at_step_0_is_not_born_dead() -> None:
    network = net("mlp", "relu", shape=(1, 1, 1), depth=1, width=2)
    ledger = looking(network, PIXELS)
    layer = network.layers()[0]
    with torch.no_grad():
        layer.map.bias.copy_(torch.tensor([math.nan, -1.0]))
    rows = ledger.look(0)
    assert counts(rows, 1)["dead"] == counts(rows, 1)["born_dead"] == 1
    assert counts(rows, 1)["inactive_fraction"] == 0.5
    with torch.no_grad():
        layer.map.bias.fill_(-1.0)
    rows = ledger.look(1)
    assert [counts(rows, 1)[name] for name in COUNTS] == [2, 1, 1, 0, 2]


# --- units without gradient, whatever the activation -------------------------------------------


def with_readout(activation: str | Activation, bias: list[float]) -> Network:
    """One hidden layer whose pre runs from each bias to bias + 1, seen by the loss."""
    network = net("mlp", activation, shape=(1, 1, 1), depth=1, width=len(bias))
    hidden, readout = network.layers()
    with torch.no_grad():
        hidden.weight.fill_(1.0)
        hidden.map.bias.copy_(torch.tensor(bias))
        readout.weight.copy_(1 + torch.arange(3.0 * len(bias)).view(3, -1))
    return network


@pytest.mark.parametrize(
    ("activation", "silent"),
    [
        ("gelu", -200.0),
        ("silu", -2000.0),
        ("softplus", -2000.0),
        ("tanh", 60.0),
        ("tanh", -60.0),
        ("sigmoid", -2000.0),
        ("elu", -2000.0),
        ("relu", -2.0),
        ("relu6", 7.0),
        ("hardswish", -5.0),
    ],
)
def test_units_without_gradient(activation: str, silent: float) -> None:
    """Two of four; smooth activations have no dead units, but these say nothing any more."""
    rows = look(with_readout(activation, [silent, 0.1, silent, 1.0]), PIXELS)
    assert [row["no_grad_units"] for row in rows.units] == [2, 0]
    assert counts(rows, 1).get("dead") == (2 if activation in FLAT else None)


@pytest.mark.parametrize("activation", ["gelu", "tanh", "relu", "leaky_relu"])
def test_a_single_example_is_a_gradient(activation: str) -> None:
    """The last of four examples, in the second batch, lifts the unit out of silence."""
    deep = {"gelu": -200.0, "tanh": -60.0, "relu": -2.0, "leaky_relu": -2.0}[activation]
    network = with_readout(activation, [deep, 0.1])
    rows = look(network, torch.tensor([0.0, 0.0, 0.0, 0.5 - deep]).view(4, 1, 1, 1))
    assert [row["no_grad_units"] for row in rows.units] == [0, 0]


def test_what_the_loss_does_not_see_has_no_gradient() -> None:
    """Units that fire, but whose readout weights are 0."""
    network = with_readout("relu", [0.5, 0.5, -3.0])
    with torch.no_grad():
        network.readout.weight[:, 0] = 0.0
    rows = look(network, PIXELS)
    assert counts(rows, 1)["no_grad_units"] == 2
    assert counts(rows, 1)["dead"] == 1


def test_a_channel_without_gradient_has_none_at_any_position() -> None:
    network = net("cnn", "tanh", shape=(1, 4, 4), depth=1, width=3, stages=1)
    layer = network.layers()[0]
    with torch.no_grad():
        network.readout.weight.copy_(1 + torch.arange(9.0).view(3, 3))
        layer.weight[:, 0, 1, 1] = 100.0
        layer.map.bias.copy_(torch.tensor([60.0, 60.0, -40.0]))
    images = torch.zeros(3, 1, 4, 4)
    images[1, 0, 2, 3] = -0.6  # one position of one image: unit 1 falls from 60 to 0 there
    with torch.no_grad():
        layer.weight[0] = 0.0
    assert counts(look(network, images), 1)["no_grad_units"] == 2


# --- flat between two ends ---------------------------------------------------------------------


class Shrink(nn.Module):
    """0 between -1 and 1, and a line on each side."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.nn.functional.softshrink(inputs, 1.0)


SHRINK = Activation(lambda _units: Shrink(), flat=((-1.0, 1.0),), steep=True, turns=())


def test_an_interval_with_two_ends() -> None:
    """Both of them belong to it, and what lies beyond is active."""
    steps = torch.tensor([-1.0, 1.0]).nextafter(torch.tensor([-2.0, 2.0]))
    points = torch.tensor([-math.inf, -5.0, -1.0, -0.5, 0.0, 1.0, 5.0, math.inf, math.nan])
    assert inactive(points, ((-1.0, 1.0),)).tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0]
    assert inactive(steps, ((-1.0, 1.0),)).tolist() == [0, 0]
    both = ((-math.inf, -4.0), (0.0, 1.0))
    assert inactive(points, both).tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 0]
    assert inactive(points, ()).tolist() == [0] * 9


def test_dead_between_two_ends() -> None:
    """Pre runs from bias to bias + 1: from -1 it stays inside, from 0.5 or -1.5 it does not."""
    rows = look(with_readout(SHRINK, [-1.0, 0.5, -1.5, -0.5, 0.0, 3.0]), PIXELS)
    found = events(rows)
    assert [unit for _, unit, event in found if event == "born_dead"] == [0, 3, 4]
    assert [unit for _, unit, event in found if event == "certified"] == [3]
    assert counts(rows, 1)["no_grad_units"] == 3
    assert rows.signal[0]["saturated_fraction"] == counts(rows, 1)["inactive_fraction"]


# --- events and counts -------------------------------------------------------------------------


def test_counts_and_events_of_every_kind() -> None:
    """Four units: one stays dead, one dies, one revives, one becomes certain after it died."""
    network = with_readout("relu", [-1.0, 0.5, -1.0, 0.5])
    ledger = looking(network, PIXELS)
    bias = network.layers()[0].map.bias
    story = []
    for step, values in enumerate(
        [[-1.0, 0.5, -1.0, 0.5], [-1.0, -1.0, 0.5, -1.0], [-1.0, -1.0, 0.5, -1.5]]
    ):
        with torch.no_grad():
            bias.copy_(torch.tensor(values))
        rows = ledger.look(10 * step)
        row = counts(rows, 1)
        story.append(([row[name] for name in COUNTS], [one[1:] for one in events(rows)]))
        assert {one["step"] for one in rows.unit_events} <= {10 * step}
        assert row["inactive_fraction"] == pytest.approx(
            (torch.tensor(values) + PIXELS.view(-1, 1) <= 0).double().mean()
        )
    assert story == [
        ([2, 2, 0, 0, 0], [(0, "born_dead"), (2, "born_dead")]),
        ([3, 2, 2, 1, 0], [(1, "died"), (3, "died"), (2, "revived")]),
        ([3, 2, 0, 0, 1], [(3, "certified")]),
    ]


def test_a_ledger_goes_on_from_its_state() -> None:
    """As after an interruption: who was born dead is not born again, and who died may revive."""
    network = with_readout("relu", [-1.5, 0.5])
    before = looking(network, PIXELS)
    before.look(0)
    after = looking(network, PIXELS)
    after.load(before.state())
    with torch.no_grad():
        network.layers()[0].map.bias.copy_(torch.tensor([0.5, -1.5]))
    for one in (before, after):
        rows = one.look(1)
        assert [counts(rows, 1)[name] for name in COUNTS] == [1, 1, 1, 1, 1]
        assert [one[1:] for one in events(rows)] == [
            (1, "died"),
            (0, "revived"),
            (1, "certified"),
        ]


@pytest.mark.parametrize(
    ("sizes", "empty"),
    [
        ([1.0, 1.0, 1.0, 1.0], 0),
        ([1.0, 1.0, 1.0, 1e4], 0),
        ([1.0, 1.0, 1.0, 1.1e-3], 0),
        ([1.0, 1.0, 1.0, 0.9e-3], 1),
        ([1.0, 1.0, 0.0, 1e-30], 2),
        ([2.0, 2.0, 2.0, 1.9e-3], 1),
        ([2.0, 2.0, 2.0, 2.1e-3], 0),
    ],
)
def test_kernels_are_empty_beside_the_median(sizes: list[float], empty: int) -> None:
    """Whatever the largest is; the L2 norm of a kernel, not one of its entries, counts."""
    network = net("mobilenet_v1", "relu", shape=(1, 4, 4), depth=1, width=4, stages=1)
    depthwise = network.layers()[1]
    with torch.no_grad():
        depthwise.weight.copy_(torch.tensor(sizes).view(4, 1, 1, 1).expand(4, 1, 3, 3) / 3)
    rows = look(network, torch.rand(3, 1, 4, 4))
    assert counts(rows, 2)["empty_kernels"] == empty


def test_the_reference_knows_every_activation() -> None:
    point = torch.linspace(-8, 8, 101, dtype=torch.float64).view(-1, 1)
    for name in ACTIVATIONS.names():
        module = ACTIVATIONS[name].factory().module(1).double()
        mine = ACTIVATION[type(module)](module, point)
        torch.testing.assert_close(mine, module(point), rtol=1e-9, atol=1e-9)
