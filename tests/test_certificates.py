"""Certificates are sound: searched for by an adversary, no certified unit ever fires."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradexp.nn import ACTIVATIONS, INITS, MODELS, NORMS, RESIDUALS
from gradexp.nn.network import Network, Parts, build
from gradexp.probes.activity import inactive
from gradexp.probes.capture import captured
from tests.probing import proved as certify

GENERATOR = torch.Generator().manual_seed(0)
FLAT = [entry.name for entry in ACTIVATIONS if entry.factory().flat]


@dataclass(frozen=True)
class Case:
    """A random small net and its range of valid inputs."""

    family: str
    activation: str
    norm: str
    residual: str
    bias_shift: float
    weight_shift: float
    scale: float
    low: float
    high: float
    seed: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (2, 4, 4) if self.family != "mlp" else (2, 2, 1)

    def network(self) -> Network:
        generator = torch.Generator().manual_seed(self.seed)
        options = {"depth": 3, "width": 5} | ({"stages": 2} if self.family != "mlp" else {})
        parts = Parts(
            ACTIVATIONS[self.activation].factory(),
            INITS["kaiming_normal"].factory(bias_std=0.5),
            NORMS[self.norm].factory(),
            RESIDUALS[self.residual].factory(**({"span": 1} if self.residual != "none" else {})),
        )
        span = parts.residual.span if parts.residual else 0
        plan = MODELS[self.family].factory(**options)(self.shape, 3, span)
        network = build(plan, parts, generator)
        self._disturb(network, generator)
        return network.eval()

    @torch.no_grad()
    def _disturb(self, network: Network, generator: torch.Generator) -> None:
        for layer in network.layers():
            layer.weight.add_(self.weight_shift * layer.weight.std()).mul_(self.scale)
            if layer.bias is not None:
                layer.bias.add_(self.bias_shift)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
                module.weight.normal_(0.0, 0.3, generator=generator)
                module.bias.normal_(self.bias_shift, 1.0, generator=generator)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_(0.0, 1.0, generator=generator)
                module.running_var.uniform_(1e-3, 4.0, generator=generator)

    def certified(self, network: Network) -> list[Tensor]:
        low, high = torch.full((2,), self.low), torch.full((2,), self.high)
        return certify(network, self.shape, low, high)


cases = st.builds(
    Case,
    st.sampled_from(MODELS.names()),
    st.sampled_from(FLAT),
    st.sampled_from(NORMS.names()),
    st.sampled_from(RESIDUALS.names()),
    bias_shift=st.sampled_from([0.0, -0.5, -2.0, -5.0, 1.0, 8.0]),
    weight_shift=st.sampled_from([0.0, -1.0, -3.0, 1.0]),
    scale=st.sampled_from([1.0, 0.3, 1e-3, 10.0, 1e4]),
    low=st.sampled_from([0.0, -0.42, -2.0]),
    high=st.sampled_from([0.0, 1.0, 2.8]),
    seed=st.integers(0, 2**20),
)


def pres(network: Network, inputs: Tensor) -> list[Tensor]:
    with captured(network.observed(), inputs) as seen:
        network(inputs)
    return [one for one in seen.pre if one is not None]


def fires(network: Network, certified: list[Tensor], inputs: Tensor) -> bool:
    with torch.no_grad():
        seen = pres(network, inputs)
    return any(
        bool(
            ((inactive(pre, layer.facts.flat if layer.facts else ()) == 0) & torch.isfinite(pre))[
                :, proved
            ].any()
        )
        for layer, pre, proved in zip(network.layers(), seen, certified, strict=True)
    )


def climb(network: Network, certified: list[Tensor], start: Tensor, case: Case) -> Tensor:
    """Gradient ascent on (and descent from) the pre of certified units, kept within bounds."""
    inputs = start.clone()
    for _ in range(6):
        inputs.requires_grad_()
        seen = pres(network, inputs)
        half = len(inputs) // 2
        goal = sum(
            (pre[:half, proved].sum() - pre[half:, proved].sum())
            for pre, proved in zip(seen, certified, strict=True)
        )
        assert isinstance(goal, Tensor)
        (slope,) = torch.autograd.grad(goal, inputs)
        step = 0.25 * (case.high - case.low)
        inputs = (inputs.detach() + step * slope.sign()).clamp(case.low, case.high)
    return inputs


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases)
@example(Case("cnn", "relu", "none", "identity", -2.0, -1.0, 1.0, 0.0, 1.0, 1))
@example(Case("mobilenet_v1", "relu6", "batch", "identity", -2.0, 0.0, 1.0, -0.42, 2.8, 2))
def test_no_valid_input_activates_a_certified_unit(case: Case) -> None:
    network = case.network()
    certified = case.certified(network)
    if not any(proved.any() for proved in certified):
        return
    generator = torch.Generator().manual_seed(case.seed)
    draws = torch.rand(48, *case.shape, generator=generator)
    corners = torch.where(draws < 0.5, case.low, case.high)
    corners[:2] = torch.tensor([case.low, case.high]).view(2, 1, 1, 1)
    inside = case.low + (case.high - case.low) * draws
    inside = inside.clamp(case.low, case.high)
    for inputs in (corners, inside, climb(network, certified, corners, case)):
        assert not fires(network, certified, inputs)


@pytest.mark.parametrize("family", MODELS.names())
@pytest.mark.parametrize("norm", NORMS.names())
def test_certificates_are_found(family: str, norm: str) -> None:
    """Somewhere in every kind of net: the property above is not vacuous."""
    found = 0
    for seed in range(10):
        case = Case(family, "relu", norm, "none", -5.0, -1.0, 0.3, 0.0, 1.0, seed)
        found += sum(int(proved.sum()) for proved in case.certified(case.network()))
    assert found > 0


@pytest.mark.parametrize("residual", RESIDUALS.names())
@pytest.mark.parametrize("depth", [1, 5, 50])
def test_nothing_positive_comes_of_nothing_positive(depth: int, residual: str) -> None:
    """Non-negative inputs, weights and bias not positive: certified at any depth, exactly."""
    network = plain("mlp", residual, depth=depth + 1, width=8)
    layer = network.layers()[depth]
    with torch.no_grad():
        layer.weight[:5] = -layer.weight[:5].abs()
        layer.weight[0] = 0.0
        layer.bias[:5] = 0.0
        layer.bias[1] = -1.0
        layer.bias[5] = 1e-3
        layer.weight[5] = -layer.weight[5].abs()
    low, high = torch.zeros(1), torch.ones(1)
    proved = certify(network, (1, 3, 3), low, high)[depth]
    assert proved[:5].all()
    assert not proved[5:].any()


def plain(family: str, residual: str, **options: int) -> Network:
    shortcut = RESIDUALS[residual].factory()
    init = INITS["kaiming_normal"].factory()
    parts = Parts(ACTIVATIONS["relu"].factory(), init, None, shortcut)
    plan = MODELS[family].factory(**options)((1, 3, 3), 3, shortcut.span if shortcut else 0)
    return build(plan, parts, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["stem", "depthwise", "pointwise"])
def test_channels_of_every_kind_of_convolution(kind: str) -> None:
    network = plain("mobilenet_v1", "none", depth=2, width=4, stages=1)
    index = {"stem": 0, "depthwise": 3, "pointwise": 4}[kind]
    with torch.no_grad():
        network.layers()[index].weight[2] = -network.layers()[index].weight[2].abs()
    proved = certify(network, (1, 3, 3), torch.zeros(1), torch.ones(1))
    assert proved[index][2]
    assert sum(int(one.sum()) for one in proved) >= 1


def test_what_may_be_negative_is_not_certified() -> None:
    """The same unit with inputs that reach below 0 can fire."""
    network = plain("mlp", "none", depth=1, width=4)
    layer = network.layers()[0]
    with torch.no_grad():
        layer.weight.copy_(-layer.weight.abs())
    assert certify(network, (1, 3, 3), torch.zeros(1), torch.ones(1))[0].all()
    assert not certify(network, (1, 3, 3), -torch.ones(1), torch.ones(1))[0].any()


def test_dead_beyond_the_examples_is_not_certified() -> None:
    """Inactive on what a probe sees, but one valid corner makes it fire: no certificate."""
    network = plain("mlp", "none", depth=1, width=4)
    layer = network.layers()[0]
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.map.bias.copy_(torch.tensor([-8.9, -8.999, -9.001, -9.1]))
    proved = certify(network, (1, 3, 3), torch.zeros(1), torch.ones(1))[0]
    assert proved.tolist() == [False, False, True, True]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_none_prove_nothing(bad: float) -> None:
    network = plain("mlp", "none", depth=2, width=4)
    first, second, _ = network.layers()
    with torch.no_grad():
        first.weight[0, 0] = bad
        second.weight.copy_(-second.weight.abs())
        second.map.bias.fill_(-1.0)
    proved = certify(network, (1, 3, 3), torch.zeros(1), torch.ones(1))
    assert not proved[0][0]
    assert not proved[1].any()


def test_an_activation_dips_between_its_ends() -> None:
    """Hardswish of [-3, 0] reaches -0.375 inside; times -10 that lifts the next unit by 3.75."""
    init = INITS["kaiming_normal"].factory()
    parts = Parts(ACTIVATIONS["hardswish"].factory(), init, None, None)
    plan = MODELS["mlp"].factory(depth=2, width=2)((1, 1, 1), 3, 0)
    network = build(plan, parts, torch.Generator().manual_seed(0))
    first, second, _ = network.layers()
    with torch.no_grad():
        first.weight.fill_(3.0)
        first.map.bias.fill_(-3.0)
        second.weight.fill_(-5.0)
        second.map.bias.copy_(torch.tensor([-6.7, -6.8]))
    proved = certify(network, (1, 1, 1), torch.zeros(1), torch.ones(1))
    assert [one.tolist() for one in proved[:2]] == [[False, False], [False, True]]


def test_one_unit_can_stand_out_of_a_layer_norm() -> None:
    """The most that one of six normalized values can be is sqrt(5) = 2.236."""
    parts = Parts(
        ACTIVATIONS["relu"].factory(),
        INITS["kaiming_normal"].factory(),
        NORMS["layer"].factory(),
        None,
    )
    network = build(MODELS["mlp"].factory(depth=1, width=6)((1, 1, 1), 3, 0), parts, GENERATOR)
    layer = network.layers()[0]
    with torch.no_grad():
        layer.weight.copy_(torch.eye(6)[:, :1] * 9)
        layer.norm.bias.copy_(torch.tensor([-2.23, -2.26, -2.23, -2.26, -2.3, -1.0]))
    proved = certify(network, (1, 1, 1), torch.zeros(1), torch.ones(1))[0]
    assert proved.tolist() == [False, True, False, True, True, False]


def test_layer_norm_of_a_large_common_part() -> None:
    """The rounded mean of equal values near 1e7 leaves remainders that eps magnifies to 300."""
    parts = Parts(
        ACTIVATIONS["relu"].factory(),
        INITS["kaiming_normal"].factory(),
        NORMS["layer"].factory(),
        None,
    )
    network = build(MODELS["mlp"].factory(depth=1, width=3)((1, 1, 1), 3, 0), parts, GENERATOR)
    layer = network.layers()[0]
    with torch.no_grad():
        layer.weight.fill_(1e7)
        layer.norm.bias.fill_(-1.5)  # sqrt(3 - 1) is 1.414
    proved = certify(network, (1, 1, 1), torch.zeros(1), torch.ones(1))
    inputs = torch.rand(500, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    assert fires(network, [torch.ones(3, dtype=torch.bool)] * 2, inputs)
    assert not fires(network, proved, inputs)
