"""The flight recorder: where numbers stop being numbers, against a run that looks at every step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gradexp.config import Config
from gradexp.nn import ACTIVATIONS, Activation
from gradexp.nn.network import Layer
from gradexp.probes.nonfinite import NonFinite, locate_by_probe
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
