"""Probes leave no trace: the net that was looked at is the net that was not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from gradexp.probes.capture import captured, undisturbed
from gradexp.records import RunDir
from gradexp.train import execute
from gradexp.train.learner import Learner, build_network
from gradexp.train.run import run_dir
from tests.conftest import StopAt
from tests.probing import prober
from tests.reference import CNN, MLP, MOBILE, config_of, run_of

CPU = torch.device("cpu")
NETS = {
    "mlp": (*MLP, "model.norm=batch", "model.dropout=0.3"),
    "cnn": (
        *CNN,
        "model.norm=batch",
        "model.dropout=0.2",
        "model.residual={name: identity, span: 1}",
    ),
    "mobilenet": (*MOBILE, "model.norm=batch", "model.activation=prelu", "model.dropout=0.1"),
    "layer norm": (*MLP, "model.norm=layer", "model.dropout=0.3", "train.optimizer=adam"),
}
NEVER, ALWAYS = "probe.every=1000", "probe.every=1"
TRAINING = ("gradients", "steps", "epochs")


def figures(run: RunDir) -> dict[str, pd.DataFrame]:
    tables = {name: run.read(name) for name in TRAINING}
    return {
        name: table.drop(columns=["step_seconds", "seconds"], errors="ignore")
        for name, table in tables.items()
    }


@pytest.mark.parametrize("net", NETS)
def test_training_is_the_same_with_probes_and_without(tmp_path: Path, net: str) -> None:
    """Bit for bit: gradients and weights of every step, and the test set at the end."""
    seldom = run_of(tmp_path, *NETS[net], NEVER)
    always = run_of(tmp_path, *NETS[net], ALWAYS)
    assert seldom.read("signal")["step"].nunique() == 2
    assert always.read("signal")["step"].nunique() == 7
    for name in TRAINING:
        assert figures(seldom)[name].equals(figures(always)[name]), name


def state(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("training", [True, False])
def test_a_probe_leaves_everything_as_it_was(tmp_path: Path, net: str, training: bool) -> None:
    network = build_network(config_of(tmp_path, *NETS[net])).train(training)
    before, random = state(network), torch.get_rng_state()
    inputs = torch.rand(12, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(12) % 3
    rows = [prober(network, inputs, targets, 8).look(0) for _ in range(2)]
    assert rows[0] == rows[1]
    assert all(module.training == training for module in network.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert state(network).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in state(network).items())
    assert all(one.grad is None for one in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_a_probe_drops_out_the_same_whatever_was_drawn_before(tmp_path: Path) -> None:
    network = build_network(config_of(tmp_path, *NETS["mlp"]))
    inputs = torch.rand(12, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    look = prober(network, inputs, torch.arange(12) % 3, 8)
    rows = []
    for _ in range(2):
        torch.rand(7)
        rows.append(look.look(0).signal)
    assert rows[0] == rows[1]


def test_weights_are_the_same_after_training_with_probes_between(tmp_path: Path) -> None:
    config = config_of(tmp_path, *NETS["mlp"], "train.optimizer=adam")
    looked_at, left_alone = Learner(config, CPU), None
    _train(looked_at, probes=True)
    left_alone = Learner(config, CPU)
    _train(left_alone, probes=False)
    one, other = state(looked_at.network), state(left_alone.network)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def _train(learner: Learner, *, probes: bool) -> None:
    look = learner.prober(None, 8)
    for step in range(5):
        if probes:
            look.look(step)
        learner.step(step, 5)


def test_hooks_and_state_go_back_even_when_the_forward_pass_fails(tmp_path: Path) -> None:
    network = build_network(config_of(tmp_path, *NETS["mlp"])).eval()
    inputs = torch.rand(8, 2, 6, 6)
    before, random = state(network), torch.get_rng_state()

    def look() -> None:
        with undisturbed(network), captured(network.observed(), inputs):
            network(torch.rand(8, 2, 6, 6))
            network(torch.ones(2, 99))

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        look()
    assert not network.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in state(network).items())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("step", [1, 4, 7])
def test_an_interrupted_run_tells_the_same_story(tmp_path: Path, step: int) -> None:
    """The ledger, the events and the thinned gradients go on where they were."""
    setting = (
        *MLP,
        "model.init={name: kaiming_normal, bias_std: 3.0}",
        "train.optimizer.lr=1.0",
        "train.steps=10",
        "probe.every=2",
        "probe.gradients_every=4",
    )
    config = config_of(tmp_path, *setting)
    whole = execute(config, tmp_path / "whole").run
    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path / "halves", observer=StopAt(step))
    halves = execute(config, tmp_path / "halves")
    assert halves.resumed_from is not None
    assert run_dir(config, tmp_path / "halves").path == halves.run.path
    for name in ("gradients", "signal", "units", "unit_events"):
        one, other = (run.table_path(name).read_bytes() for run in (whole, halves.run))
        assert one == other, name
    assert {"died", "born_dead"} <= set(whole.read("unit_events")["event"])
