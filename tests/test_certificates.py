"""Certificates are sound: searched for by an adversary, no certified unit ever fires."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gradexp.nn import ACTIVATIONS, INITS, MODELS, NORMS, RESIDUALS, Activation
from gradexp.nn.blueprint import BlockSpec, Blueprint, LayerSpec
from gradexp.nn.bounds import Bounds
from gradexp.nn.network import Network, Parts, build
from gradexp.nn.residuals import Residual
from gradexp.probes.activity import inactive
from gradexp.probes.capture import captured
from gradexp.probes.certificates import certified_units
from tests.nets import FAMILIES
from tests.probing import certificates
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
    st.sampled_from(FAMILIES),
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


@pytest.mark.parametrize("family", FAMILIES)
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


# --- rounding: proofs hold for float32, whose sums and functions are not exact ------------------


def built(blocks: list[BlockSpec], readout: LayerSpec, parts: Parts) -> Network:
    return build(Blueprint(tuple(blocks), readout), parts, GENERATOR).eval()


def parts_of(activation: Activation, norm: str = "none", residual: Residual | None = None) -> Parts:
    return Parts(activation, INITS["kaiming_normal"].factory(), NORMS[norm].factory(), residual)


RELU = ACTIVATIONS["relu"].factory()
LAST = ("map",)


def given(module: nn.Module, network: Network, inputs: Tensor) -> Tensor:
    """What a module of the net is given."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, args, _output: seen.append(args[0]))
    with torch.no_grad():
        network(inputs)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("family", ["mlp", "cnn"])
@pytest.mark.parametrize("size", [1e7, 1e20])
def test_layer_norm_of_a_large_common_part(family: str, size: float) -> None:
    """Of 17 values, equal but for a last digit, a rounded mean leaves more than sqrt(16) of eps."""
    options = {"depth": 1, "width": 17} | ({"stages": 1} if family == "cnn" else {})
    plan = MODELS[family].factory(**options)((1, 1, 1), 3, 0)
    network = build(plan, parts_of(RELU, "layer"), GENERATOR)
    layer = network.layers()[0]
    with torch.no_grad():
        layer.weight.fill_(size)
        layer.weight[0] *= 1 + 2.0**-23
        layer.norm.bias.fill_(-4.1)
    inputs = torch.rand(500, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    everything, nothing = torch.ones(17, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    assert fires(network, [everything, nothing], inputs)
    proved = certify(network, (1, 1, 1), torch.zeros(1), torch.ones(1))
    assert not fires(network, proved, inputs)
    with torch.no_grad():
        layer.weight.fill_(1e-3)
    assert certify(network, (1, 1, 1), torch.zeros(1), torch.ones(1))[0].all()


def test_batch_norm_of_its_own_mean() -> None:
    """Exactly 0 after the norm; in float32 just above it in some units."""
    first = LayerSpec("first", "linear", 64, 64, stages=("norm", "activation", "map"))
    network = built(
        [BlockSpec((first,))],
        LayerSpec("last", "linear", 64, 3, stages=LAST),
        parts_of(RELU, "batch"),
    )
    layer = network.layers()[0]
    generator = torch.Generator().manual_seed(0)
    values = 1 + torch.rand(64, generator=generator)
    with torch.no_grad():
        layer.norm.running_mean.copy_(values)
        layer.norm.running_var.uniform_(0.01, 4.0, generator=generator)
        layer.norm.weight.normal_(generator=generator)
        layer.norm.bias.zero_()
    above = given(layer.activation, network, values.view(1, 64, 1, 1))[0] > 0
    assert above.any()
    assert not (certify(network, (64, 1, 1), values, values)[0] & above).any()
    with torch.no_grad():
        layer.norm.bias.fill_(-1e-4)
    assert certify(network, (64, 1, 1), values, values)[0].all()


class Take(nn.Module):
    """A join that leaves out the branch: what follows is given the block's input as it is."""

    def forward(self, inputs: Tensor, _branch: Tensor) -> Tensor:
        return inputs

    def bounds(self, inputs: Bounds, _branch: Bounds) -> Bounds:
        return inputs


class Bent(nn.Module):
    """0 as far as a bend, then a function that float32 rounds."""

    def __init__(self, bend: float) -> None:
        super().__init__()
        self._lost = 3 * math.log1p(math.exp(bend)) + 1e-12

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(3 * F.softplus(inputs) - self._lost)

    def where(self, value: float) -> float:
        """Where it has that value."""
        return math.log(math.expm1((value + self._lost) / 3))


def test_a_function_that_rounds_upward() -> None:
    """Twice the same function: its exact value lies at the second one's bend, float32's above."""
    found = 0
    for bend in torch.linspace(1.0, 2.0, 40).tolist():
        values = (Bent(bend).where(bend) + torch.arange(-3, 4) * 2.0**-23).float()
        function = Activation(lambda _units, b=bend: Bent(b), flat=((-math.inf, bend),), turns=())  # type: ignore[misc]
        shortcut = Residual(1, Take, after_sum=True)
        blocks = [
            BlockSpec((LayerSpec(name, "linear", 7, 7),), shortcut=True) for name in ("a", "b")
        ]
        readout = LayerSpec("last", "linear", 7, 3, stages=LAST)
        network = built(blocks, readout, parts_of(function, residual=shortcut))
        second = network.layers()[1]
        above = given(second.activation, network, values.view(1, 7, 1, 1))[0] > bend
        below = Bent(bend)(values.double()) <= bend
        found += int((above & below).sum())
        proved = certify(network, (7, 1, 1), values, values)[1]
        assert not (proved & above).any()
        assert certify(network, (7, 1, 1), values - 1e-4, values - 1e-4)[1].all()
    assert found > 3


COUNT, VALUE = 4096, 0.19615385


def summed_one_by_one() -> float:
    """What float32 makes of the sum of equal values if it adds one after the other, over exact."""
    values = np.full(COUNT, VALUE, dtype=np.float32)
    return float(np.add.accumulate(values)[-1]) / (COUNT * float(values[0]))


def above(share: float) -> Tensor:
    """Biases that lift nothing, nothing but what is summed badly, and nothing at all."""
    value = float(np.float32(VALUE))
    excess = summed_one_by_one() - 1
    return torch.tensor([-value, -value * (1 + excess / 2), -value * (1 + share)])


def test_sums_over_many_inputs_may_come_out_larger() -> None:
    """In any order of summation, as it differs from machine to machine."""
    assert summed_one_by_one() > 1 + 2e-5
    wide = LayerSpec("wide", "linear", COUNT, 3)
    network = built(
        [BlockSpec((wide,))], LayerSpec("last", "linear", 3, 3, stages=LAST), parts_of(RELU)
    )
    layer = network.layers()[0]
    with torch.no_grad():
        layer.weight.fill_(1 / COUNT)
        layer.map.bias.copy_(above(2e-3))
    values = torch.full((COUNT,), VALUE)
    proved = certify(network, (COUNT, 1, 1), values, values)[0]
    assert proved.tolist() == [False, False, True]


def test_averages_over_many_positions_may_come_out_larger() -> None:
    """Behind the average comes a layer with an activation."""
    first = LayerSpec("first", "pointwise", 1, 1)
    network = built([BlockSpec((first,))], LayerSpec("last", "linear", 1, 3), parts_of(RELU))
    one, last = network.layers()
    with torch.no_grad():
        one.weight.fill_(1.0)
        one.map.bias.zero_()
        last.weight.fill_(1.0)
        last.map.bias.copy_(above(1e-3))
    values = torch.full((1,), VALUE)
    proved = certify(network, (1, 64, 64), values, values)[1]
    assert proved.tolist() == [False, False, True]


@pytest.mark.parametrize(("scale", "most"), [(10.0, 11.0), (0.25, 1.25), (1.0, 2.0)])
def test_a_branch_is_scaled(scale: float, most: float) -> None:
    """Behind x + scale * F(x) of x in [0, 1] and F the identity there."""
    shortcut = RESIDUALS["identity"].factory(span=1, scale=scale)
    plan = MODELS["mlp"].factory(depth=3, width=2)((1, 1, 1), 3, 1)
    network = build(plan, parts_of(RELU, residual=shortcut), GENERATOR)
    first, second, third, _ = network.layers()
    with torch.no_grad():
        first.weight.fill_(1.0)
        for layer in (second, third):
            layer.weight.copy_(torch.eye(2))
        for layer in (first, second):
            layer.map.bias.zero_()
        third.map.bias.copy_(torch.tensor([-most * 0.999, -most * 1.001]))
    proved = certify(network, (1, 1, 1), torch.zeros(1), torch.ones(1))
    assert [one.tolist() for one in proved[:3]] == [[False] * 2, [False] * 2, [False, True]]
    assert fires(network, [*proved[:2], ~proved[2], proved[3]], torch.ones(1, 1, 1, 1))


class Blind(nn.Module):
    """A join without a rule for bounds."""

    def forward(self, inputs: Tensor, branch: Tensor) -> Tensor:
        return inputs + branch


def hopeless(activation: Activation = RELU, residual: Residual | None = None) -> Network:
    """Three layers that never fire, by their biases, whatever comes before them."""
    plan = MODELS["mlp"].factory(depth=3, width=2)((1, 1, 1), 3, residual.span if residual else 0)
    network = build(plan, parts_of(activation, residual=residual), GENERATOR)
    with torch.no_grad():
        for layer in network.layers()[:3]:
            layer.map.bias.fill_(-1e3)
    return network


def test_nothing_is_known_behind_what_has_no_rule() -> None:
    """A join without bounds, and an activation whose turns are unknown; before them, all is."""
    ends = (1, 1, 1), torch.zeros(1), torch.ones(1)
    plain = certificates(hopeless(), *ends)
    assert [one is None for one in plain] == [False, False, False, True]
    assert all(one is not None and one.all() for one in plain[:3])
    first, second, third, _ = certify(hopeless(residual=Residual(1, Blind)), *ends)
    assert first.all()
    assert second.all()
    assert not third.any()
    unknown = Activation(lambda _units: nn.ReLU(), flat=RELU.flat)
    first, second, _, _ = certify(hopeless(unknown), *ends)
    assert first.all()
    assert not second.any()


def test_a_net_of_somebody_elses_has_no_certificates() -> None:
    network = hopeless()
    inside = nn.Sequential(network)
    low, high = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    assert certified_units(inside, network.observed(), low, high) == [None] * 4


def test_smooth_nets_have_no_certificates() -> None:
    ends = (1, 1, 1), torch.zeros(1), torch.ones(1)
    assert certificates(hopeless(ACTIVATIONS["tanh"].factory()), *ends) == [None] * 4
