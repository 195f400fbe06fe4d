"""Nets of other people's making: their layers, and the same figures as a slow float64 look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from gradexp.probes.finding import find_layers
from tests import foreign
from tests.foreign import Follow, Layer, Recurrent, SmallGPT, described, look, slow_look

RESNET18 = """
conv1 conv 147 3136 64 relu batch
layer1.0.conv1 conv 576 576 64 relu batch
layer1.0.conv2 conv 576 576 64 relu batch
layer1.1.conv1 conv 576 576 64 relu batch
layer1.1.conv2 conv 576 576 64 relu batch
layer2.0.conv1 conv 576 1152 128 relu batch
layer2.0.conv2 conv 1152 1152 128 relu batch
layer2.0.downsample.0 pointwise 64 128 128 none batch
layer2.1.conv1 conv 1152 1152 128 relu batch
layer2.1.conv2 conv 1152 1152 128 relu batch
layer3.0.conv1 conv 1152 2304 256 relu batch
layer3.0.conv2 conv 2304 2304 256 relu batch
layer3.0.downsample.0 pointwise 128 256 256 none batch
layer3.1.conv1 conv 2304 2304 256 relu batch
layer3.1.conv2 conv 2304 2304 256 relu batch
layer4.0.conv1 conv 2304 4608 512 relu batch
layer4.0.conv2 conv 4608 4608 512 relu batch
layer4.0.downsample.0 pointwise 256 512 512 none batch
layer4.1.conv1 conv 4608 4608 512 relu batch
layer4.1.conv2 conv 4608 4608 512 relu batch
fc linear 512 10 10 none none
"""
MOBILENET_V2 = """
features.0.0 conv 27 288 32 relu6 batch
features.1.conv.0.0 depthwise 9 9 32 relu6 batch
features.1.conv.1 pointwise 32 16 16 none batch
features.2.conv.0.0 pointwise 16 96 96 relu6 batch
features.2.conv.1.0 depthwise 9 9 96 relu6 batch
features.2.conv.2 pointwise 96 24 24 none batch
features.3.conv.0.0 pointwise 24 144 144 relu6 batch
features.3.conv.1.0 depthwise 9 9 144 relu6 batch
features.3.conv.2 pointwise 144 24 24 none batch
features.4.conv.0.0 pointwise 24 144 144 relu6 batch
features.4.conv.1.0 depthwise 9 9 144 relu6 batch
features.4.conv.2 pointwise 144 32 32 none batch
features.5.conv.0.0 pointwise 32 192 192 relu6 batch
features.5.conv.1.0 depthwise 9 9 192 relu6 batch
features.5.conv.2 pointwise 192 32 32 none batch
features.6.conv.0.0 pointwise 32 192 192 relu6 batch
features.6.conv.1.0 depthwise 9 9 192 relu6 batch
features.6.conv.2 pointwise 192 32 32 none batch
features.7.conv.0.0 pointwise 32 192 192 relu6 batch
features.7.conv.1.0 depthwise 9 9 192 relu6 batch
features.7.conv.2 pointwise 192 64 64 none batch
features.8.conv.0.0 pointwise 64 384 384 relu6 batch
features.8.conv.1.0 depthwise 9 9 384 relu6 batch
features.8.conv.2 pointwise 384 64 64 none batch
features.9.conv.0.0 pointwise 64 384 384 relu6 batch
features.9.conv.1.0 depthwise 9 9 384 relu6 batch
features.9.conv.2 pointwise 384 64 64 none batch
features.10.conv.0.0 pointwise 64 384 384 relu6 batch
features.10.conv.1.0 depthwise 9 9 384 relu6 batch
features.10.conv.2 pointwise 384 64 64 none batch
features.11.conv.0.0 pointwise 64 384 384 relu6 batch
features.11.conv.1.0 depthwise 9 9 384 relu6 batch
features.11.conv.2 pointwise 384 96 96 none batch
features.12.conv.0.0 pointwise 96 576 576 relu6 batch
features.12.conv.1.0 depthwise 9 9 576 relu6 batch
features.12.conv.2 pointwise 576 96 96 none batch
features.13.conv.0.0 pointwise 96 576 576 relu6 batch
features.13.conv.1.0 depthwise 9 9 576 relu6 batch
features.13.conv.2 pointwise 576 96 96 none batch
features.14.conv.0.0 pointwise 96 576 576 relu6 batch
features.14.conv.1.0 depthwise 9 9 576 relu6 batch
features.14.conv.2 pointwise 576 160 160 none batch
features.15.conv.0.0 pointwise 160 960 960 relu6 batch
features.15.conv.1.0 depthwise 9 9 960 relu6 batch
features.15.conv.2 pointwise 960 160 160 none batch
features.16.conv.0.0 pointwise 160 960 960 relu6 batch
features.16.conv.1.0 depthwise 9 9 960 relu6 batch
features.16.conv.2 pointwise 960 160 160 none batch
features.17.conv.0.0 pointwise 160 960 960 relu6 batch
features.17.conv.1.0 depthwise 9 9 960 relu6 batch
features.17.conv.2 pointwise 960 320 320 none batch
features.18.0 pointwise 320 1280 1280 relu6 batch
classifier.1 linear 1280 10 10 none none
"""
LSTM = """
lstm.ih_l0 recurrent 5 24 24 none none
lstm.hh_l0 recurrent 6 24 24 none none
lstm.ih_l1 recurrent 6 24 24 none none
lstm.hh_l1 recurrent 6 24 6 none none
head linear 6 3 3 none none
"""
GPT = """
place embedding 1 8 8 none none
token embedding 1 8 8 none none
blocks.0.attention.in_proj attention 8 24 24 none none
blocks.0.attention.out_proj attention 8 8 8 none none
blocks.0.up linear 8 24 24 gelu none
blocks.0.down linear 24 8 8 none none
blocks.1.attention.in_proj attention 8 24 24 none none
blocks.1.attention.out_proj attention 8 8 8 none none
blocks.1.up linear 8 24 24 relu none
blocks.1.down linear 24 8 8 none none
blocks.2.attention.in_proj attention 8 24 24 none none
blocks.2.attention.out_proj attention 8 8 8 none none
blocks.2.up linear 8 24 24 relu none
blocks.2.down linear 24 8 8 none none
head linear 8 11 11 none none
"""


@torch.no_grad()
def _silence(*biases: Tensor) -> None:
    """Some units far below 0, one far above, one only just below."""
    for bias in biases:
        bias[:3] = -60.0
        bias[3] = 60.0
        bias[4] = -1.0


def _resnet() -> nn.Module:
    net = models.resnet18(weights=None, num_classes=10)
    _silence(net.bn1.bias, net.layer2[0].bn1.bias, net.layer3[1].bn2.bias)
    return net


def _mobilenet() -> nn.Module:
    net = models.mobilenet_v2(weights=None, num_classes=10, dropout=0.0)
    _silence(net.features[0][1].bias, net.features[4].conv[0][1].bias)
    _silence(net.features[9].conv[1][1].bias)
    return net


def _frozen(make: Callable[[], nn.Module]) -> nn.Module:
    """Its norms keep to running statistics, which are not as they were made."""
    net = make()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0.0, 0.1)
            norm.running_var.uniform_(0.5, 2.0)
            norm.eval()
    return net


def _gpt() -> nn.Module:
    net = SmallGPT()
    _silence(net.blocks[1].up.bias, net.blocks[2].up.bias, net.blocks[0].up.bias)
    return net


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32)


@dataclass(frozen=True)
class Case:
    """A net, what it is given, how it is computed slowly, and its layers.

    Where a norm mixes few examples it magnifies rounding: those nets are looked at in float64.
    """

    net: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    follow: Follow
    layers: str
    together: bool = False


CASES = {
    "resnet18": Case(_resnet, lambda: _images(6), foreign.resnet18, RESNET18, together=True),
    "resnet18, frozen statistics": Case(
        lambda: _frozen(_resnet), lambda: _images(3), foreign.resnet18, RESNET18
    ),
    "mobilenet_v2": Case(
        _mobilenet, lambda: _images(6), foreign.mobilenet_v2, MOBILENET_V2, together=True
    ),
    "mobilenet_v2, frozen statistics": Case(
        lambda: _frozen(_mobilenet), lambda: _images(3), foreign.mobilenet_v2, MOBILENET_V2
    ),
    "lstm": Case(
        lambda: Recurrent(by_state=False), lambda: torch.randn(7, 4, 5), foreign.recurrent, LSTM
    ),
    "lstm, last state": Case(
        lambda: Recurrent(by_state=True), lambda: torch.randn(7, 4, 5), foreign.recurrent, LSTM
    ),
    "gpt": Case(_gpt, lambda: torch.randint(0, 11, (9, 6)), foreign.small_gpt, GPT),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Case, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    made = CASES[request.param]
    net, inputs = made.net(), made.inputs()
    if made.together:
        net, inputs = net.double(), inputs.double()
    return made, net, inputs, torch.arange(len(inputs)) % 3


Given = tuple[Case, nn.Module, Tensor, Tensor]


def test_layers_are_found_in_the_order_of_use(case: Given) -> None:
    made, net, inputs, _ = case
    found = [described(layer) for layer in find_layers(net, inputs)]
    assert found == made.layers.split("\n")[1:-1]


def test_figures_of_every_layer(case: Given) -> None:
    made, net, inputs, targets = case
    batches = len(targets) if made.together else 2
    rows = look(net, inputs, targets, batches)
    seen = slow_look(net, made.follow, inputs, targets, together=made.together)
    assert len(rows.signal) == len(rows.units) == len(made.layers.split("\n")) - 2
    for signal, units in zip(rows.signal, rows.units, strict=True):
        layer = seen.pop(str(signal["layer"]), None)
        if layer is None:  # values that only a later layer of the same call shows
            assert set(signal) == {"step", "layer_index", "layer"}
            assert units.get("no_grad_units") is None
            continue
        figures_agree(signal, layer, len(targets))
        units_agree(units, layer)
    assert not seen


def figures_agree(signal: object, layer: Layer, examples: int) -> None:
    row = dict(signal)  # type: ignore[call-overload]
    size = float(layer.pre.std(correction=0))
    for name, values in (("pre", layer.pre), ("post", layer.post)):
        mean, std = float(values.mean()), float(values.std(correction=0))
        assert row[f"{name}_mean"] == pytest.approx(mean, rel=1e-5, abs=1e-5 * size)
        assert row[f"{name}_std"] == pytest.approx(std, rel=1e-5)
    if layer.alone:
        assert row["pre_grad_norm"] is None
    else:
        assert row["pre_grad_norm"] == pytest.approx(layer.pre_grad_norm(examples), rel=1e-5)
    if layer.shape is None:
        assert row["saturated_fraction"] is None
    else:
        low, high = layer.saturated_between(1e-6)
        assert low - 1e-12 <= row["saturated_fraction"] <= high + 1e-12


def units_agree(units: object, layer: Layer) -> None:
    row = dict(units)  # type: ignore[call-overload]
    assert row["units"] == layer.pre.shape[1]
    assert row["no_grad_units"] == (None if layer.alone else layer.no_grad_units())
    if layer.shape is None or not layer.shape.flat:
        assert row.get("dead") is None
        return
    inactive = float((layer.shape.slope(layer.pre) == 0).double().mean())
    assert row["dead"] == row["born_dead"] == layer.dead()
    assert row["inactive_fraction"] == pytest.approx(inactive, abs=2e-5)


def test_these_cases_have_dead_units() -> None:
    """Else agreement would say nothing; and a unit that is dead at both ends of a ReLU6."""
    torch.manual_seed(0)
    for make, inputs, layer, dead in (
        (_resnet, _images(6), 0, 3),
        (_mobilenet, _images(6), 0, 4),
        (_gpt, torch.randint(0, 11, (9, 6)), 8, 11),
    ):
        row = look(make(), inputs, torch.arange(len(inputs)) % 3).units[layer]
        assert row["dead"] == row["no_grad_units"] == dead


def test_a_look_leaves_no_trace(case: Given) -> None:
    _, net, inputs, targets = case
    for place, part in enumerate(net.modules()):  # some parts are at evaluation
        part.training = part.training and place % 3 != 1
    modes = [part.training for part in net.modules()]
    before, random, given = foreign.state_of(net), torch.get_rng_state(), inputs.clone()
    look(net, inputs, targets, 2)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(inputs, given)
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())
    assert all(one.grad is None and one.requires_grad for one in net.parameters())
    assert [part.training for part in net.modules()] == modes
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
