"""Six nets in a foreign loop on MNIST, as anybody would write it: which of them are sick?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradexp
from gradexp.config import parse_yaml, resolve
from gradexp.train.learner import load_data
from tests.conftest import real_data

STEPS, BATCH, EXAMPLES, WIDTH = 300, 64, 10_000, 64
MNIST = f"data: {{dataset: mnist, train_examples: {EXAMPLES}, verify: false}}\n"
Init = Callable[[Tensor], object]
he: Init = partial(nn.init.kaiming_normal_, nonlinearity="relu")
xavier: Init = nn.init.xavier_normal_


def a_net(
    depth: int, activation: type[nn.Module], init: Init, *, norm: bool = False
) -> nn.Sequential:
    modules: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise([28 * 28, *[WIDTH] * depth]):
        modules += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs)][: 1 + norm]
        modules.append(activation())
    whole = nn.Sequential(*modules, nn.Linear(WIDTH, 10))
    for part in whole.modules():
        if isinstance(part, nn.Linear):
            init(part.weight)
            nn.init.zeros_(part.bias)
    return whole


Optimizer = Callable[..., torch.optim.Optimizer]
sgd: Optimizer = partial(torch.optim.SGD, lr=0.05)
wide: Init = partial(nn.init.normal_, std=0.6)


class Case(NamedTuple):
    """A net, its optimizer, and the alarms that are to be raised."""

    net: Callable[[], nn.Module]
    optimizer: Optimizer
    alarms: set[str]


NETS = {
    "sigmoid 20": Case(partial(a_net, 20, nn.Sigmoid, xavier), sgd, {"vanishing", "stalled"}),
    "relu 20": Case(partial(a_net, 20, nn.ReLU, he), sgd, set()),
    "relu 3, adam": Case(partial(a_net, 3, nn.ReLU, he), partial(torch.optim.Adam, lr=0.02), set()),
    "relu 12, std 0.6": Case(partial(a_net, 12, nn.ReLU, wide), sgd, {"diverged", "exploding"}),
    "batch norm, relu 20": Case(partial(a_net, 20, nn.ReLU, he, norm=True), sgd, set()),
    "relu 3": Case(partial(a_net, 3, nn.ReLU, he), sgd, set()),
}


@pytest.fixture(scope="module")
def mnist() -> tuple[Tensor, Tensor]:
    real_data()
    data = load_data(resolve(parse_yaml(MNIST, "mnist.yaml")), torch.device("cpu"))
    return data.inputs(data.train_images), data.train_targets


@pytest.mark.parametrize("name", NETS)
def test_what_is_said_of_a_strangers_net(
    tmp_path: Path, mnist: tuple[Tensor, Tensor], name: str
) -> None:
    case, (inputs, targets) = NETS[name], mnist
    torch.manual_seed(0)
    net = case.net()
    stepper = case.optimizer(net.parameters())
    order = torch.randperm(EXAMPLES)
    probe = inputs[:512], targets[:512]
    watched = gradexp.watch(net, stepper, probe=probe, loss=F.cross_entropy, out=tmp_path / "run")
    with watched as watch:
        for step in range(STEPS):
            chosen = order[(step * BATCH) % (EXAMPLES - BATCH) :][:BATCH]
            logits = net(inputs[chosen])
            loss = F.cross_entropy(logits, targets[chosen])
            loss.backward()
            stepper.step()
            stepper.zero_grad()
            watch.step(loss, logits, targets[chosen])
    said = watch.diagnosis()
    if name == "relu 3, adam":  # half of its units die, and it learns all the same
        last = watch.run.read("units").query("step == step.max() and dead.notna()")
        assert last["dead"].sum() > 0.3 * last["units"].sum()
        assert "dying" in said.names
        return
    assert {one.name for one in said.verdicts if one.alarm} == case.alarms, str(said)
    if not case.alarms:
        assert said.names[0] == "healthy"
    if name == "relu 12, std 0.6":
        assert watch.run.read_summary()["nonfinite"]["step"] <= 1
