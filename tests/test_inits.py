"""Inits: the variance of every weight and bias drawn, against closed forms, fans by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from gradexp.errors import ConfigError
from gradexp.nn import INITS, Fans
from tests.nets import Map, config_of, maps_of, network_of, run_of

SIGMAS = 5.0  # how many standard errors a sample may be off: with fixed seeds, once and for all


@dataclass(frozen=True)
class Drawn:
    """Weights of one layer of a net, and the numbers a closed form is made of."""

    net: tuple[str, ...]
    layer: int
    fan_in: int
    fan_out: int
    slope: float = 0.0

    def weight(self, init: str) -> Tensor:
        return self._map(init).weight.detach().double()

    def bias(self, init: str) -> Tensor:
        bias = self._map(init).bias
        assert bias is not None
        return bias.detach().double()

    def _map(self, init: str) -> Map:
        return maps_of(network_of(*self.net, f"model.init={init}"))[self.layer]


# Inputs are images [8, 4, 4]; fans differ between the two sides wherever a layer allows it.
DATA = ("data.channels=8", "data.size=4", "data.classes=50")
MLP = (*DATA, "model={family: mlp, depth: 2, width: 400}")
CNN = (*DATA, "model={family: cnn, depth: 3, width: 40, stages: 2}")
MOBILE = (*DATA, "model={family: mobilenet_v1, depth: 1, width: 400, stages: 1}")
LEAKY = "model.activation={name: leaky_relu, negative_slope: 0.5}"
LAYERS = {
    "linear": Drawn(MLP, 0, 128, 400),
    "linear, leaky": Drawn((*MLP, LEAKY), 1, 400, 400, slope=0.5),
    "linear, leaky by default": Drawn((*MLP, "model.activation=leaky_relu"), 1, 400, 400, 0.01),
    "linear, prelu": Drawn((*MLP, "model.activation=prelu"), 1, 400, 400, slope=0.25),
    "linear, identity": Drawn((*MLP, "model.activation=identity"), 1, 400, 400, slope=1.0),
    "linear, tanh": Drawn((*MLP, "model.activation=tanh"), 1, 400, 400),
    "readout": Drawn(MLP, 2, 400, 50, slope=1.0),
    "readout after leaky": Drawn((*MLP, LEAKY), 2, 400, 50, slope=1.0),
    "conv": Drawn(CNN, 0, 72, 360),
    "conv, leaky": Drawn((*CNN, LEAKY), 2, 360, 720, slope=0.5),
    "readout of convolutions": Drawn(CNN, 3, 80, 50, slope=1.0),
    "depthwise": Drawn(MOBILE, 1, 9, 9),
    "depthwise, leaky": Drawn((*MOBILE, LEAKY), 1, 9, 9, slope=0.5),
    "pointwise": Drawn(MOBILE, 2, 400, 800),
}


def kaiming(fan: int, slope: float) -> float:
    """He et al. 2015, eq. 15."""
    return math.sqrt(2 / ((1 + slope**2) * fan))


def xavier(drawn: Drawn) -> float:
    """Glorot & Bengio 2010, eq. 12."""
    return math.sqrt(2 / (drawn.fan_in + drawn.fan_out))


def deviation(name: str, options: dict[str, Any], drawn: Drawn) -> float:
    """The standard deviation that the literature gives."""
    kind = name.removesuffix("_normal").removesuffix("_uniform")
    if kind == "kaiming":
        fan = drawn.fan_out if options.get("mode") == "fan_out" else drawn.fan_in
        return kaiming(fan, drawn.slope)
    return {
        "torch": 1 / math.sqrt(3 * drawn.fan_in),
        "normal": options.get("std", 0.01),
        "uniform": options.get("limit", 0.05) / math.sqrt(3),
        "xavier": options.get("gain", 1.0) * xavier(drawn),
        "lecun": 1 / math.sqrt(drawn.fan_in),
    }[kind]


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "torch": [{}],
    "normal": [{}, {"std": 0.3}],
    "uniform": [{}, {"limit": 0.3}],
    "xavier_normal": [{}, {"gain": 1.7}],
    "xavier_uniform": [{}, {"gain": 1.7}],
    "kaiming_normal": [{}, {"mode": "fan_out"}],
    "kaiming_uniform": [{}, {"mode": "fan_out"}],
    "lecun_normal": [{}],
    "lecun_uniform": [{}],
}
CASES = [(name, options) for name, all_options in OPTIONS.items() for options in all_options]
UNIFORM = {"torch", *(name for name in OPTIONS if "uniform" in name)}


def yaml(name: str, **options: Any) -> str:
    return f"{{name: {name}{''.join(f', {key}: {value}' for key, value in options.items())}}}"


def assert_drawn(values: Tensor, std: float, *, uniform: bool) -> None:
    """As many values as there are, with mean 0, that deviation, and the right tails."""
    values = values.flatten()
    count = len(values)
    kurtosis = 1.8 if uniform else 3.0
    assert abs(values.mean()) < SIGMAS * std / math.sqrt(count)
    variance = float((values**2).mean())
    assert variance == pytest.approx(std**2, rel=SIGMAS * math.sqrt((kurtosis - 1) / count))
    most, limit = float(values.abs().max()), math.sqrt(3) * std
    if uniform:
        assert limit * (1 - 20 / count) < most <= limit * (1 + 1e-6)
    else:
        assert most > 1.4 * limit


def test_every_init_has_a_closed_form() -> None:
    assert {*OPTIONS, "orthogonal"} == set(INITS.names())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_weights(layer: str, name: str, options: dict[str, Any]) -> None:
    """Depthwise layers count their groups; nothing follows the readout, so its gain is 1."""
    drawn = LAYERS[layer]
    weight = drawn.weight(yaml(name, **options))
    assert_drawn(weight, deviation(name, options, drawn), uniform=name in UNIFORM)


@pytest.mark.parametrize("name", [name for name in INITS.names() if name != "torch"])
@pytest.mark.parametrize("layer", ["linear", "conv", "depthwise", "readout"])
def test_biases(name: str, layer: str) -> None:
    """Exactly 0, or normal with the deviation asked for, whatever the fans."""
    drawn = LAYERS[layer]
    assert not drawn.bias(yaml(name)).any()
    assert_drawn_few(drawn.bias(yaml(name, bias_std=0.7)), 0.7)


def assert_drawn_few(values: Tensor, std: float) -> None:
    """As `assert_drawn`, for counts too small to judge tails by."""
    count = len(values)
    assert abs(float(values.mean())) < SIGMAS * std / math.sqrt(count)
    assert float((values**2).mean()) == pytest.approx(std**2, rel=SIGMAS * math.sqrt(2 / count))


@pytest.mark.parametrize("layer", ["linear", "conv", "depthwise", "pointwise"])
def test_torch_biases(layer: str) -> None:
    drawn = LAYERS[layer]
    bias = drawn.bias("torch")
    limit = 1 / math.sqrt(drawn.fan_in)
    assert limit * (1 - 20 / len(bias)) < float(bias.abs().max()) <= limit * (1 + 1e-6)
    assert_drawn_few(bias, limit / math.sqrt(3))


def test_torch_is_what_torchs_own_layers_do() -> None:
    """Of each kind of map, the deviations of a plain module's weight and bias."""
    torch.manual_seed(0)
    own: list[Map] = [
        nn.Linear(128, 400),
        nn.Conv2d(8, 40, 3),
        nn.Conv2d(400, 400, 3, groups=400),
    ]
    for layer, module in zip(("linear", "conv", "depthwise"), own, strict=True):
        ours = LAYERS[layer]
        for one, other in (
            (ours.weight("torch"), module.weight.detach()),
            (ours.bias("torch"), cast("Tensor", module.bias).detach()),
        ):
            assert float(one.std()) == pytest.approx(float(other.std()), rel=0.35)
            assert float(one.abs().max()) == pytest.approx(float(other.abs().max()), rel=0.2)


@pytest.mark.parametrize("gain", [1.0, 1.7])
@pytest.mark.parametrize("layer", ["linear", "linear, tanh", "readout", "conv", "pointwise"])
def test_orthogonal(layer: str, gain: float) -> None:
    """The shorter side of the matrix is orthogonal: W W^T or W^T W is gain^2 times 1."""
    options = {} if gain == 1.0 else {"gain": gain}
    net = LAYERS[layer] if layer != "pointwise" else Drawn((*MOBILE, "model.width=60"), 2, 60, 120)
    weight = net.weight(yaml("orthogonal", **options)).flatten(1)
    short = weight if weight.shape[0] <= weight.shape[1] else weight.T
    product = short @ short.T
    torch.testing.assert_close(
        product, gain**2 * torch.eye(len(product), dtype=torch.float64), rtol=0, atol=1e-4
    )
    # Signs are drawn too: a decomposition's own would leave a mark on the diagonal.
    assert 0.2 < (weight.diagonal() > 0).double().mean() < 0.8


@pytest.mark.parametrize("name", INITS.names())
def test_the_seed_decides_every_weight_and_nothing_else_does(name: str) -> None:
    net = ("model={family: mlp, depth: 3, width: 5}", f"model.init={name}")

    def weights(*overrides: str) -> list[Tensor]:
        return [one.weight.detach() for one in maps_of(network_of(*net, *overrides))]

    torch.manual_seed(1)
    first = weights()
    torch.manual_seed(2)
    again, other = weights(), weights("seed=1")
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert not torch.equal(first[1], first[2])


def test_gain_of_the_rectifier_that_follows() -> None:
    for slope, gain in ((0.0, math.sqrt(2)), (0.5, math.sqrt(1.6)), (1.0, 1.0), (2.0, 0.4**0.5)):
        assert Fans(3, 4, slope).rectifier_gain() == pytest.approx(gain, rel=1e-12)


def test_a_run_begins_with_those_weights(tmp_path: Path) -> None:
    """In `gradients.csv` a weight norm is about its deviation times the root of the count."""
    run = run_of(tmp_path, *MLP, "model.init={name: normal, std: 0.2}", "train.steps=0")
    norms = run.read("gradients")["weight_norm"].tolist()
    expected = [0.2 * math.sqrt(count) for count in (128 * 400, 400 * 400, 400 * 50)]
    assert norms == pytest.approx(expected, rel=0.02)


def test_biases_that_are_not_there_have_no_deviation() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.init\.bias_std has no effect with model\.bias: false"
    ):
        config_of("model.bias=false", "model.init={name: kaiming_normal, bias_std: 0.1}")
    config_of("model.bias=false", "model.init=torch")
    config_of("model.bias=false", "model.init={name: kaiming_normal, bias_std: 0.0}")


@pytest.mark.parametrize(
    "init",
    [
        "{name: normal, std: 0}",
        "{name: normal, bias_std: -1}",
        "{name: uniform, limit: 0}",
        "{name: xavier_normal, gain: 0}",
        "{name: orthogonal, gain: 0}",
        "{name: kaiming_normal, mode: fan_mid}",
    ],
)
def test_options_out_of_range_are_refused(init: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.init"):
        config_of(f"model.init={init}")
