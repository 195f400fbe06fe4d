"""The flight recorder: where numbers stop being numbers, against a run that looks at every step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradexp.config import Config
from gradexp.nn import ACTIVATIONS, Activation
from gradexp.nn.network import Layer
from gradexp.nn.observed import Observed
from gradexp.probes.finding import find_layers
from gradexp.probes.nonfinite import (
    NonFinite,
    NonFiniteError,
    first_bad_step,
    locate_by_forward,
    locate_by_norms,
    locate_by_probe,
)
from gradexp.probes.steps import StepValues
from gradexp.records import RunDir
from gradexp.train import execute
from gradexp.train.learner import Learner, build_network
from tests.conftest import StopAt
from tests.probing import prober
from tests.reference import MLP, config_of, run_of

CPU = torch.device("cpu")
NET = "model={family: mlp, depth: 3, width: 6, init: {name: kaiming_normal, bias_std: 0.1}}"
DEEP_LINEAR = "model={family: mlp, depth: 6, width: 6, activation: identity, init: xavier_normal}"
DIVERGING = {
    "sgd": (NET, "train.optimizer={name: sgd, lr: 1e13, momentum: 0.9}"),
    "deep linear": (DEEP_LINEAR, "train.optimizer={name: sgd, lr: 0.6}", "train.steps=200"),
    "elu": (*MLP, "model.activation=elu", "train.optimizer={name: sgd, lr: 30.0}"),
    "dropout": (
        DEEP_LINEAR,
        "model.dropout=0.6",
        "seed=1",  # another mask would blame hidden.5
        "train.optimizer={name: sgd, lr: 3.0}",
    ),
    "selu batch norm": (*MLP, "model.activation=selu", "train.optimizer={name: sgd, lr: 1e30}"),
    "adamw": (NET, "train.optimizer={name: adamw, lr: 1e5}", "train.weight_decay=1e3"),
    "wide init": (NET, "model.init={name: normal, std: 1e20}"),
    "rising lr": (DEEP_LINEAR, "train.optimizer={name: sgd, lr: 3.0, momentum: 0.95}"),
}


# A weight decay that overshoots: weights double at every step, and sigmoids hide it for long.
GROWING = (
    "model.activation=sigmoid",
    "train.optimizer={name: sgd, lr: 0.01}",
    "train.weight_decay=300",
    "train.steps=200",
)


@dataclass
class Event:
    step: int
    tensor: str
    layer: str | None


def watched(config: Config) -> tuple[Event | None, Event | None]:
    """Train by hand; look at everything at every step: the first event, and that of a bad loss."""
    learner, event = Learner(config, CPU), None
    network, total = learner.network, config.train.steps or 0
    layers = network.layers()
    for step in range(total):
        inputs, targets = learner.batches.batch(step)
        random = torch.get_rng_state()
        buffers = [buffer.clone() for buffer in network.buffers()]
        seen: dict[str, bool] = {}

        def look(name: str, *tensors: torch.Tensor, seen: dict[str, bool] = seen) -> None:
            seen[name] = all(bool(torch.isfinite(one).all()) for one in tensors)

        handles = [
            layer.stages[
                -1 if layer.activation not in layer.stages else layer.stages.index(layer.activation)
            ].register_forward_hook(
                lambda _m, i, o, name=layer.spec.name, look=look: look(name, i[0], o)
            )
            for layer in layers
        ]
        loss = F.cross_entropy(network(inputs), targets)
        for handle in handles:
            handle.remove()
        weights = [layer.weight for layer in layers]
        gradients = torch.autograd.grad(loss, weights)
        here = first(step, layers, seen, loss, gradients)
        event = event or here
        if not bool(torch.isfinite(loss)):
            return event, here
        torch.set_rng_state(random)
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)
        learner.step(step, total)
    return event, None


def first(
    step: int,
    layers: list[Layer],
    seen: dict[str, bool],
    loss: torch.Tensor,
    gradients: tuple[torch.Tensor, ...],
) -> Event | None:
    for layer in layers:
        if not all(bool(torch.isfinite(one).all()) for one in layer.parameters()):
            return Event(step, "weight", layer.spec.name)
    for layer in layers:
        if not seen[layer.spec.name]:
            return Event(step, "activation", layer.spec.name)
    if not bool(torch.isfinite(loss)):
        return Event(step, "loss", None)
    for layer, gradient in zip(layers[::-1], gradients[::-1], strict=True):
        if not bool(torch.isfinite(gradient).all()):
            return Event(step, "gradient", layer.spec.name)
    return None


@pytest.mark.parametrize("name", DIVERGING)
def test_the_first_event_is_found(tmp_path: Path, name: str) -> None:
    settings = ("train.steps=80", "probe.every=1000", *DIVERGING[name])
    run = run_of(tmp_path, *settings)
    event, end = watched(config_of(tmp_path, *settings))
    assert event is not None
    assert end is not None, "this case must diverge"
    summary = run.read_summary()
    for found, wanted in ((summary["nonfinite"], event), (summary["diverged"], end)):
        assert (found["step"], found["tensor"], found["layer"]) == astuple(wanted)
    assert run.status() == "diverged"
    always = run_of(tmp_path, *settings, "probe.every=1").read("epochs")
    assert run.read("epochs").drop(columns="seconds").equals(always.drop(columns="seconds"))
    assert event.layer is None or f"of {event.layer}" in run.read_manifest()["outcome"]
    ends_at_the_bad_loss(run, end.step)


def ends_at_the_bad_loss(run: RunDir, end: int) -> None:
    steps = run.read("steps")
    assert steps["step"].tolist() == list(range(end + 1))
    assert np.isfinite(steps["loss"][:-1]).all()
    assert not math.isfinite(steps["loss"].iloc[-1])
    lines = (run.path / "gradients.csv").read_text().splitlines()[1:]
    without_update = [line for line in lines if line.endswith(",")]
    assert {int(line.split(",")[0]) for line in without_update} == {end}
    for table in ("signal", "units"):
        assert not run.read(table).duplicated(["step", "layer_index"]).any()
        assert run.read(table)["step"].max() == end
    assert run.read("epochs")["step"].iloc[-1] == end


def test_the_last_fifty_steps_are_kept_at_full_resolution(tmp_path: Path) -> None:
    settings = (NET, *GROWING)
    thin = run_of(tmp_path, *settings, "probe.gradients_every=10")
    end = thin.read_summary()["steps"]
    event = thin.read_summary()["nonfinite"]["step"]
    assert event > 70, "the net must live long enough for this test"
    recorded = sorted(set(thin.read("gradients")["step"]))
    full = [*range(event - 50, event + 1)]
    assert recorded == sorted({*range(0, end + 1, 10), *full})
    every = run_of(tmp_path, *settings).read("gradients")
    assert thin.read("gradients").equals(every[every["step"].isin(recorded)].reset_index(drop=True))


class Spike(torch.autograd.Function):
    """The identity, whose derivative for the first of 8 examples is infinite at one call."""

    calls = 0

    @staticmethod
    def forward(_context: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * 1.0

    @staticmethod
    def backward(_context: Any, gradient: torch.Tensor) -> torch.Tensor:
        Spike.calls += len(gradient) == 8
        if len(gradient) != 8 or Spike.calls != SPIKE_CALL:
            return gradient
        spiked = torch.zeros_like(gradient)
        spiked[0] = torch.inf
        return spiked


SPIKE_CALL = 3 * 70 + 3  # the first of three layers, at step 70


class Spiking(torch.nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = Spike.apply(inputs)
        return out


@pytest.fixture
def spike() -> Iterator[None]:
    ACTIVATIONS.register("spike")(lambda: Activation(lambda _units: Spiking()))
    Spike.calls = 0
    yield
    ACTIVATIONS.remove("spike")


@pytest.mark.usefixtures("spike")
def test_the_steps_before_an_event_that_training_survives(tmp_path: Path) -> None:
    """Clipped by value an infinite gradient does no harm; its past is kept all the same."""
    settings = (NET, "train.steps=120", "probe.gradients_every=25", "model.activation=spike")
    run = run_of(tmp_path, *settings, "train.clip=value", "train.optimizer.lr=0.001")
    assert run.status() == "finished"
    summary = run.read_summary()
    assert summary["diverged"] is None
    found = summary["nonfinite"]
    assert (found["step"], found["tensor"], found["layer"]) == (70, "gradient", "hidden.1")
    recorded = sorted(set(run.read("gradients")["step"]))
    assert recorded == sorted({*range(0, 120, 25), *range(20, 71)})
    steps = run.read("steps")
    assert steps["grad_norm"][70] == math.inf
    assert math.isnan(steps["clip_coefficient"][70]) or steps["clip_coefficient"][70] == 0
    assert np.isfinite(steps["loss"]).all()


@pytest.mark.usefixtures("spike")
def test_an_interrupted_run_still_knows_of_the_event(tmp_path: Path) -> None:
    """The steps before it were not written yet when the run stopped at step 75."""
    settings = (NET, "train.steps=120", "probe.every=25", "probe.gradients_every=25")
    spiking = ("model.activation=spike", "train.clip=value", "train.optimizer.lr=0.001")
    config = config_of(tmp_path, *settings, *spiking)
    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path, observer=StopAt(80))
    outcome = execute(config, tmp_path)
    assert outcome.resumed_from == 75
    assert outcome.run.read_summary()["nonfinite"]["step"] == 70
    recorded = sorted(set(outcome.run.read("gradients")["step"]))
    assert recorded == sorted({*range(0, 120, 25), *range(20, 71)})


def test_an_overflow_that_a_flat_activation_hides(tmp_path: Path) -> None:
    """Infinite pre, finite post, finite loss and gradients: only a probe can see it."""
    network = build_network(config_of(tmp_path, NET, "model.activation=hardtanh"))
    layers = network.layers()
    with torch.no_grad():
        layers[1].weight.fill_(3e38)
        layers[0].map.bias.fill_(2.0)
        layers[0].weight.zero_()
    rows = prober(network, torch.rand(5, 2, 6, 6), torch.arange(5) % 3, 8).look(7)
    found = locate_by_probe(network.observed(), list(rows.signal), 7)
    assert found == NonFinite(7, "activation", "hidden.2", 2)
    assert [math.isfinite(row["post_mean"]) for row in rows.signal] == [True] * 4  # type: ignore[arg-type]


def test_weights_that_overflow_in_the_very_last_update(tmp_path: Path) -> None:
    settings = (NET, "train.steps=1", "train.optimizer={name: sgd, lr: 1e39}")
    run = run_of(tmp_path, *settings)
    assert run.status() == "finished"
    found = run.read_summary()["nonfinite"]
    assert (found["step"], found["tensor"]) == (1, "weight")


def test_a_net_that_begins_without_a_loss(tmp_path: Path) -> None:
    """`train.steps: 0` says so as well."""
    run = run_of(tmp_path, NET, "model.init={name: normal, std: 1e20}", "train.steps=0")
    assert run.status() == "diverged"
    found = run.read_summary()["nonfinite"]
    assert (found["step"], found["tensor"], found["layer"]) == (0, "activation", "hidden.2")


def test_non_finite_values_are_written_as_such(tmp_path: Path) -> None:
    run = run_of(tmp_path, NET, "model.init={name: normal, std: 1e20}")
    first_step = (run.path / "steps.csv").read_text().splitlines()[1].split(",")
    assert first_step[2] in {"nan", "inf"}
    row = (run.path / "gradients.csv").read_text().splitlines()[1].split(",")
    assert row[3] in {"nan", "inf"}
    assert row[7] == ""
    units = run.read("units")
    assert (units["dead"].dropna() <= units["units"][units["dead"].notna()]).all()


def test_a_healthy_run_has_no_event(tmp_path: Path) -> None:
    run = run_of(tmp_path, NET)
    assert run.read_summary()["nonfinite"] is None
    assert run.read_summary()["diverged"] is None
    assert run.status() == "finished"


# --- from recorded norms alone -----------------------------------------------------------------

NAMES = ["first", "second", "third"]
# Columns of a step: loss, accuracy, grad_norm, clip_coefficient; rows of a layer: gradient, clipped
# gradient, bias gradient, weight, update.
LOSS, ACCURACY, TOTAL, COEFFICIENT = range(4)
GRAD, CLIPPED, BIAS, WEIGHT, UPDATE = range(5)


def recorded(steps: int = 4) -> StepValues:
    return StepValues(np.ones((steps, 4)), np.ones((steps, 5, 3)), steps)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("weights", "gradients", "found"),
    [
        ([], [0], ("gradient", "first", 1)),
        ([], [2], ("gradient", "third", 3)),
        ([], [0, 1], ("gradient", "second", 2)),
        ([], [0, 1, 2], ("gradient", "third", 3)),
        ([1], [], ("weight", "second", 2)),
        ([2], [0], ("weight", "third", 3)),
        ([1, 2], [0, 1, 2], ("weight", "second", 2)),
        ([0, 2], [], ("weight", "first", 1)),
        ([], [], ("gradient", None, None)),
    ],
)
def test_culprits_by_norms(
    bad: float, weights: list[int], gradients: list[int], found: tuple[str, str | None, int | None]
) -> None:
    """Weights before gradients; weights from the input, gradients from the output."""
    values = recorded()
    values.layers[2, WEIGHT, weights] = bad
    values.layers[2, GRAD, gradients] = bad
    values.layers[1, :, 0] = bad  # another step is not asked
    assert locate_by_norms(values, 2, 40, NAMES) == NonFinite(40, *found)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_step_by_norms(bad: float) -> None:
    """Loss, total, any layer's gradient and any weight count; what follows from them does not."""
    assert first_bad_step(recorded()) is None
    for column, counts in ((LOSS, True), (TOTAL, True), (ACCURACY, False), (COEFFICIENT, False)):
        values = recorded()
        values.scalars[2:, column] = bad
        assert first_bad_step(values) == (2 if counts else None)
    for row, counts in (
        (GRAD, True),
        (WEIGHT, True),
        (CLIPPED, False),
        (BIAS, False),
        (UPDATE, False),
    ):
        for layer in range(3):
            values = recorded()
            values.layers[1, row, layer] = values.layers[3, row, layer] = bad
            assert first_bad_step(values) == (1 if counts else None)


def test_of_several_signs_the_earliest_step_counts() -> None:
    values = recorded()
    values.scalars[3, LOSS] = values.layers[2, GRAD, 1] = values.layers[1, WEIGHT, 0] = math.nan
    assert first_bad_step(values) == 1
    values.scalars[0, TOTAL] = math.inf
    assert first_bad_step(values) == 0


# --- from a forward pass, or a probe -----------------------------------------------------------


def three_layers() -> tuple[nn.Module, list[Observed], torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
    )
    inputs = torch.rand(5, 3)
    return net, find_layers(net, inputs), inputs


def test_culprits_by_a_forward_pass() -> None:
    """A parameter of whatever kind before any activation; then the first activation; else loss."""
    net, layers, inputs = three_layers()
    assert locate_by_forward(net, layers, inputs, 3) == NonFinite(3, "loss", None, None)
    with torch.no_grad():
        net[0].weight.fill_(3e38)  # finite, but not what comes of it
    assert locate_by_forward(net, layers, inputs, 3) == NonFinite(3, "activation", "0", 1)
    for parameter, name, index in (
        (net[5].bias, "5", 3),
        (net[3].weight, "3", 2),
        (net[1].weight, "0", 1),
    ):
        with torch.no_grad():
            parameter.view(-1)[-1] = math.nan
        assert locate_by_forward(net, layers, inputs, 3) == NonFinite(3, "weight", name, index)


def test_an_overflow_between_finite_values_is_found_by_a_forward_pass() -> None:
    """Pre is infinite, and the tangent of it is 1."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 2))
    inputs = torch.full((3, 1), 2.0)
    layers = find_layers(net, inputs)
    with torch.no_grad():
        net[0].weight.fill_(3e38)
        assert torch.isfinite(net(inputs)).all()
    assert locate_by_forward(net, layers, inputs, 3) == NonFinite(3, "activation", "0", 1)


def test_a_forward_pass_is_repeated_with_the_same_random_numbers() -> None:
    """And nothing is left changed: buffers, random state, modes."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 2))
    inputs = torch.rand(5, 3)
    layers = find_layers(net, inputs)
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in net.state_dict().items()}
    seen: list[torch.Tensor] = []
    handle = net[1].register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        locate_by_forward(net, layers, inputs, 0)
    handle.remove()
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert all(torch.equal(one, before[key]) for key, one in net.state_dict().items())
    torch.set_rng_state(state)


@pytest.mark.parametrize("column", ["pre_mean", "pre_std", "post_mean", "post_std"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_culprits_by_a_probe(column: str, bad: float) -> None:
    """Activations from the input, then gradients from the output."""
    _, layers, _ = three_layers()
    rows: list[dict[str, Any]] = [
        {"pre_mean": 0.0, "pre_std": 1.0, "post_mean": 0.0, "post_std": 1.0, "pre_grad_norm": 1.0}
        for _ in range(3)
    ]
    assert locate_by_probe(layers, list(rows), 9) is None
    rows[0]["pre_grad_norm"] = rows[1]["pre_grad_norm"] = bad
    assert locate_by_probe(layers, list(rows), 9) == NonFinite(9, "gradient", "3", 2)
    rows[2][column] = bad
    assert locate_by_probe(layers, list(rows), 9) == NonFinite(9, "activation", "5", 3)
    rows[1][column] = bad
    assert locate_by_probe(layers, list(rows), 9) == NonFinite(9, "activation", "3", 2)
    with torch.no_grad():
        layers[2].biases[0][0] = bad
    assert locate_by_probe(layers, list(rows), 9) == NonFinite(9, "weight", "5", 3)


def test_what_a_probe_does_not_know_is_no_event() -> None:
    _, layers, _ = three_layers()
    empty: list[dict[str, Any]] = [{"pre_grad_norm": None}, {}, {"saturated_fraction": math.nan}]
    assert locate_by_probe(layers, list(empty), 9) is None


def test_an_event_in_words() -> None:
    found = NonFinite(7, "activation", "block2.conv", 5)
    assert found.sentence() == (
        "the activation of block2.conv is the first that is not finite, at step 7"
    )
    assert replace(found, tensor="loss", layer=None).sentence() == (
        "the loss is the first that is not finite, at step 7"
    )
    assert found.as_dict() == {
        "step": 7,
        "tensor": "activation",
        "layer": "block2.conv",
        "layer_index": 5,
    }
    error = NonFiniteError(found)
    assert error.found is found
    assert str(error) == f"{found.sentence()}; the update was not made"
