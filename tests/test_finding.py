"""The layers of any module, however it is written, and what is known of their activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, rnn

from gradexp.errors import RunError
from gradexp.nn.observed import Observed
from gradexp.probes.capture import captured
from gradexp.probes.finding import find_layers
from tests import foreign
from tests.foreign import Shape, Trace, described, look, slow_look

INF = math.inf
TARGETS = torch.tensor([0, 1, 2, 0, 1])


class Written(nn.Module):
    """A module whose forward pass is a function of its parts and its input."""

    def __init__(self, function: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(self, *args, **kwargs)


def two_maps(activation: Callable[[Tensor], Tensor]) -> nn.Module:
    """Linear maps from 4 to 6 to 3 with a function between them."""
    torch.manual_seed(0)
    return Written(
        lambda net, x: net.readout(net.activation(net.hidden(x))),
        activation=activation,
        hidden=nn.Linear(4, 6),
        readout=nn.Linear(6, 3),
    )


def rows(seed: int = 1) -> Tensor:
    """Five examples for it, wide enough to meet every part of an activation."""
    return 4 * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))


def weight(*shape: int) -> nn.Parameter:
    """A parameter of no module's."""
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(2)))


class OwnNorm(nn.Module):
    """A norm by hand, with a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x / ((x**2).mean(-1, keepdim=True) + 1e-6).sqrt()


class OwnActivation(nn.Module):
    """An activation by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x)


class Average(nn.Module):
    """A pooling by hand: no norm, although it is a small module after a map."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def _images() -> Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _steps() -> Tensor:
    return torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(1))


def _tokens() -> Tensor:
    return torch.randint(0, 9, (5, 7), generator=torch.Generator().manual_seed(1))


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], list[str]]] = {
    "convolutions of all kinds": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, groups=3),
            nn.GroupNorm(2, 6),
            nn.LeakyReLU(0.2),
            nn.Conv2d(6, 4, 3, stride=2, groups=2),
            nn.ConvTranspose2d(4, 6, 2, groups=2),
            nn.InstanceNorm2d(6, affine=True),
            nn.PReLU(6),
            nn.Conv2d(6, 6, 3, groups=6, padding=1),
            nn.Tanh(),
            nn.Conv2d(6, 5, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 3),
        ),
        _images,
        [
            "0 conv 9 18 6 leaky_relu group",
            "3 conv 27 18 4 none none",
            "4 conv 8 12 6 prelu instance",
            "7 depthwise 9 9 6 tanh none",
            "9 pointwise 6 5 5 none none",
            "12 linear 5 3 3 none none",
        ],
    ),
    "convolutions in one and three dimensions": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 6, 3),
            nn.BatchNorm1d(6),
            nn.Hardsigmoid(),
            nn.Unflatten(2, (5, 1, 1)),
            nn.Conv3d(6, 2, (3, 1, 1)),
            nn.Flatten(),
            nn.Linear(6, 3),
        ),
        lambda: _steps().transpose(1, 2),
        [
            "0 conv 12 18 6 hardsigmoid batch",
            "4 conv 18 6 2 none none",
            "6 linear 6 3 3 none none",
        ],
    ),
    "matrices without modules": (
        lambda: Written(
            lambda net, x: F.relu(x @ net.w1 + net.b1) @ net.w2,
            w1=weight(4, 6),
            b1=weight(6),
            w2=weight(6, 3),
        ),
        rows,
        ["w1 linear 4 6 6 relu none", "w2 linear 6 3 3 none none"],
    ),
    "functions with matrices": (
        lambda: Written(
            lambda net, x: torch.addmm(net.b, torch.sigmoid(F.linear(x, net.w1)), net.w2),
            w1=weight(6, 4),
            b=weight(3),
            w2=weight(6, 3),
        ),
        rows,
        ["w1 linear 4 6 6 sigmoid none", "w2 linear 6 3 3 none none"],
    ),
    "weights that are computed": (
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Linear(4, 6)),
            nn.ReLU(),
            parametrizations.spectral_norm(nn.Linear(6, 6)),
            nn.ELU(2.0),
            prune.l1_unstructured(nn.Linear(6, 3), "weight", 0.3),
        ),
        rows,
        [
            "0 linear 4 6 6 relu none",
            "2 linear 6 6 6 elu none",
            "4 linear 6 3 3 none none",
        ],
    ),
    "parts of one's own": (
        lambda: nn.Sequential(
            nn.Linear(4, 6),
            OwnNorm(6),
            nn.ReLU(),
            nn.Linear(6, 6),
            OwnActivation(),
            nn.Linear(6, 6),
            nn.RMSNorm(6),
            nn.SELU(),
            nn.Linear(6, 3),
        ),
        rows,
        [
            "0 linear 4 6 6 relu ownnorm",
            "3 linear 6 6 6 ownactivation none",
            "5 linear 6 6 6 selu rms",
            "8 linear 6 3 3 none none",
        ],
    ),
    "norm after activation": (
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 6), nn.LayerNorm(6)
        ),
        rows,
        ["0 linear 4 6 6 relu none", "3 linear 6 6 6 none layer"],
    ),
    "norm and activation of a sum": (
        lambda: Written(
            lambda net, x: net.b(F.relu(net.norm(net.a(x) + x))),
            b=nn.Linear(4, 3),
            a=nn.Linear(4, 4),
            norm=nn.LayerNorm(4),
        ),
        rows,
        ["a linear 4 4 4 relu none", "b linear 4 3 3 none none"],
    ),
    "a branch that goes beside the activation": (
        lambda: Written(
            lambda net, x: net.b(F.silu(net.a(x)) * net.gate(x)),
            a=nn.Linear(4, 6),
            gate=nn.Linear(4, 6),
            b=nn.Linear(6, 3),
        ),
        rows,
        ["a linear 4 6 6 silu none", "gate linear 4 6 6 none none", "b linear 6 3 3 none none"],
    ),
    "squeeze and excite": (
        lambda: Written(
            _squeeze_and_excite,
            a=nn.Linear(4, 6),
            gate=nn.Linear(6, 6),
            b=nn.Linear(6, 3),
        ),
        rows,
        ["a linear 4 6 6 relu none", "gate linear 6 6 6 sigmoid none", "b linear 6 3 3 none none"],
    ),
    "embeddings": (
        lambda: nn.Sequential(nn.EmbeddingBag(9, 6), nn.Tanh(), nn.Linear(6, 3)),
        _tokens,
        ["0 embedding 1 6 6 tanh none", "2 linear 6 3 3 none none"],
    ),
    "recurrent, both ways": (
        lambda: Written(
            lambda net, x: net.head(net.rnn(x)[0][:, -1]),
            rnn=nn.GRU(4, 6, batch_first=True, bidirectional=True),
            head=nn.Linear(12, 3),
        ),
        _steps,
        [
            "rnn.ih_l0 recurrent 4 18 18 none none",
            "rnn.hh_l0 recurrent 6 18 18 none none",
            "rnn.ih_l0_reverse recurrent 4 18 18 none none",
            "rnn.hh_l0_reverse recurrent 6 18 12 none none",
            "head linear 12 3 3 none none",
        ],
    ),
    "a recurrent cell": (
        lambda: Written(_through_cell, cell=nn.RNNCell(4, 6), head=nn.Linear(6, 3)),
        _steps,
        [
            "cell.ih recurrent 4 6 6 none none",
            "cell.hh recurrent 6 6 6 none none",
            "head linear 6 3 3 none none",
        ],
    ),
    "positions, and a module of one's own that pools them": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Softsign(), nn.Linear(6, 3), Average()),
        _steps,
        ["0 linear 4 6 6 softsign none", "2 linear 6 3 3 none none"],
    ),
    "the order of use, and a layer without use": (
        lambda: Written(
            lambda net, x: net.b(F.relu(net.a(x))),
            b=nn.Linear(6, 3),
            unused=nn.Linear(3, 3),
            a=nn.Linear(4, 6),
        ),
        rows,
        ["a linear 4 6 6 relu none", "b linear 6 3 3 none none"],
    ),
    "a tied weight": (
        lambda: Written(
            lambda net, t: F.linear(net.words(t).mean(1), net.words.weight),
            words=nn.Embedding(9, 6),
        ),
        _tokens,
        ["words embedding 1 6 6 none none"],
    ),
    "a power of the values": (
        lambda: Written(
            lambda net, x: net.b(F.relu(net.a(x)) ** 2), a=nn.Linear(4, 6), b=nn.Linear(6, 3)
        ),
        rows,
        ["a linear 4 6 6 relu none", "b linear 6 3 3 none none"],
    ),
    "two arguments": (
        lambda: Written(
            lambda net, x, y: net.b(F.relu(net.a(x) + y)), a=nn.Linear(4, 6), b=nn.Linear(6, 3)
        ),
        lambda: (rows(), torch.ones(5, 6)),
        ["a linear 4 6 6 relu none", "b linear 6 3 3 none none"],
    ),
    "arguments by name": (
        lambda: Written(
            lambda net, *, y, x: net.b(F.relu(net.a(x) + y)), a=nn.Linear(4, 6), b=nn.Linear(6, 3)
        ),
        lambda: {"x": rows(), "y": torch.ones(5, 6)},
        ["a linear 4 6 6 relu none", "b linear 6 3 3 none none"],
    ),
    "half precision": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).bfloat16(),
        lambda: rows().bfloat16(),
        ["0 linear 4 6 6 relu none", "2 linear 6 3 3 none none"],
    ),
}


def _squeeze_and_excite(net: Any, x: Tensor) -> Tensor:
    inner = F.relu(net.a(x))
    logits: Tensor = net.b(inner * torch.sigmoid(net.gate(inner)))
    return logits


def _through_cell(net: Any, x: Tensor) -> Tensor:
    state = None
    for step in range(x.shape[1]):
        state = net.cell(x[:, step], state)
    logits: Tensor = net.head(state)
    return logits


@pytest.mark.parametrize("name", NETS)
def test_layers_of_a_net(name: str) -> None:
    torch.manual_seed(0)
    make, inputs, expected = NETS[name]
    net, given = make(), inputs()
    before = foreign.state_of(net)
    assert [described(layer) for layer in find_layers(net, given)] == expected
    assert all(torch.equal(one, before[key]) for key, one in net.state_dict().items())
    seen = look(net, given, TARGETS, 3)
    assert [row["layer"] for row in seen.signal] == [line.split()[0] for line in expected]
    last = seen.signal[-1]
    assert last["pre_std"] > 0  # type: ignore[operator]
    assert last["pre_grad_norm"] > 0  # type: ignore[operator]


def test_parameters_of_a_layer() -> None:
    """Weight, bias, and those of its norm and activation; a weight may have several parts."""
    torch.manual_seed(0)
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 6)),
        nn.BatchNorm1d(6),
        nn.PReLU(6),
        nn.Linear(6, 6, bias=False),
        OwnNorm(6),
        nn.Linear(6, 3),
    )
    named = {id(one): name for name, one in net.named_parameters()}
    found = [
        [[named[id(one)] for one in some] for some in (layer.weights, layer.biases, layer.others)]
        for layer in find_layers(net, rows())
    ]
    original = "0.parametrizations.weight.original"
    assert found == [
        [[f"{original}0", f"{original}1"], ["0.bias"], ["1.weight", "1.bias", "2.weight"]],
        [["3.weight"], [], ["4.gain"]],
        [["5.weight"], ["5.bias"], []],
    ]
    assert [layer.row(1)["parameters"] for layer in find_layers(net, rows())] == [
        24 + 6 + 6 + 18,
        36 + 6,
        18 + 3,
    ]


def test_biases_of_matrices_are_those_of_their_name() -> None:
    net = Written(
        lambda net, x: F.linear(torch.addmm(net.first_bias, x, net.first_weight), net.w, net.c),
        first_weight=weight(4, 6),
        first_bias=weight(6),
        w=weight(3, 6),
        c=weight(3),
    )
    first, last = find_layers(net, rows())
    assert (first.name, last.name) == ("first", "w")
    assert [id(one) for one in (*first.biases, *last.biases)] == [id(net.first_bias), id(net.c)]


def test_a_net_without_weights_is_refused() -> None:
    net = Written(lambda net, x: x * net.gain, gain=weight(4), unused=nn.Linear(3, 3))
    with pytest.raises(RunError, match="Written: no weight was used"):
        find_layers(net, rows())


# --- activations -------------------------------------------------------------------------------

FLAT_BELOW = ((-INF, 0.0),)
# How it is written; what it is called; flat intervals; whether it is bounded; slope; closed form.
FUNCTIONS: dict[
    str,
    tuple[
        Callable[[Tensor], Tensor],
        str,
        tuple[tuple[float, float], ...],
        bool,
        float,
        Shape,
    ],
] = {
    "F.relu": (F.relu, "relu", FLAT_BELOW, False, 0, foreign.RELU),
    "torch.relu": (torch.relu, "relu", FLAT_BELOW, False, 0, foreign.RELU),
    "relu in place": (partial(F.relu, inplace=True), "relu", FLAT_BELOW, False, 0, foreign.RELU),
    "in place by position": (lambda x: F.relu(x, True), "relu", FLAT_BELOW, False, 0, foreign.RELU),
    "torch.relu_": (torch.relu_, "relu", FLAT_BELOW, False, 0, foreign.RELU),
    "x.relu()": (Tensor.relu, "relu", FLAT_BELOW, False, 0, foreign.RELU),
    "x.relu_()": (Tensor.relu_, "relu", FLAT_BELOW, False, 0, foreign.RELU),
    "x.clamp(min=0)": (lambda x: x.clamp(min=0), "relu", FLAT_BELOW, False, 0, foreign.RELU),
    "x.clamp_(0)": (lambda x: x.clamp_(0), "relu", FLAT_BELOW, False, 0, foreign.RELU),
    "clamp_min": (lambda x: torch.clamp_min(x, 0), "relu", FLAT_BELOW, False, 0, foreign.RELU),
    "clamp to 0..6": (
        lambda x: torch.clip(x, 0, 6),
        "relu6",
        (*FLAT_BELOW, (6.0, INF)),
        True,
        0,
        foreign.RELU6,
    ),
    "relu6": (F.relu6, "relu6", (*FLAT_BELOW, (6.0, INF)), True, 0, foreign.RELU6),
    "clamp above": (
        lambda x: x.clamp(max=0.5),
        "clamp",
        ((0.5, INF),),
        False,
        0,
        foreign.limited(-INF, 0.5),
    ),
    "clamp to -2..0.5": (
        lambda x: x.clamp(-2, 0.5),
        "clamp",
        ((-INF, -2.0), (0.5, INF)),
        True,
        0,
        foreign.limited(-2, 0.5),
    ),
    "hardtanh": (
        F.hardtanh,
        "hardtanh",
        ((-INF, -1.0), (1.0, INF)),
        True,
        0,
        foreign.limited(-1, 1),
    ),
    "hardtanh to 0..1, in place": (
        lambda x: F.hardtanh_(x, 0.0, 1.0),
        "hardtanh",
        ((-INF, 0.0), (1.0, INF)),
        True,
        0,
        foreign.limited(0, 1),
    ),
    "leaky": (F.leaky_relu, "leaky_relu", (), False, 0.01, foreign.leaky(0.01)),
    "leaky, named": (
        partial(F.leaky_relu, negative_slope=0.3),
        "leaky_relu",
        (),
        False,
        0.3,
        foreign.leaky(0.3),
    ),
    "leaky, in place": (
        lambda x: F.leaky_relu_(x, 0.2),
        "leaky_relu",
        (),
        False,
        0.2,
        foreign.leaky(0.2),
    ),
    "leaky of slope 0": (
        lambda x: F.leaky_relu(x, 0.0),
        "leaky_relu",
        FLAT_BELOW,
        False,
        0,
        foreign.leaky(0),
    ),
    "elu": (F.elu, "elu", (), False, 0, foreign.elu(1.0)),
    "elu of 1.5, in place": (lambda x: F.elu(x, 1.5, True), "elu", (), False, 0, foreign.elu(1.5)),
    "gelu": (F.gelu, "gelu", (), False, 0, foreign.GELU),
    "silu in place": (lambda x: F.silu(x, inplace=True), "silu", (), False, 0, foreign.SILU),
    "x * sigmoid(x)": (lambda x: x * torch.sigmoid(x), "silu", (), False, 0, foreign.SILU),
    "x.sigmoid() * x": (lambda x: x.sigmoid().mul(x), "silu", (), False, 0, foreign.SILU),
    "tanh": (torch.tanh, "tanh", (), True, 0, foreign.TANH),
    "sigmoid in place": (Tensor.sigmoid_, "sigmoid", (), True, 0, foreign.SIGMOID),
    "softplus": (F.softplus, "softplus", (), False, 0, foreign.SOFTPLUS),
    "softsign": (F.softsign, "softsign", (), True, 0, foreign.SOFTSIGN),
    "logsigmoid": (F.logsigmoid, "log_sigmoid", (), False, 0, foreign.LOGSIGMOID),
    "tanhshrink": (F.tanhshrink, "tanhshrink", (), False, 0, foreign.TANHSHRINK),
    "after dropout that drops nothing": (
        lambda x: F.relu(F.dropout(x, 0.0)),
        "relu",
        FLAT_BELOW,
        False,
        0,
        foreign.RELU,
    ),
    "in another shape": (
        lambda x: F.relu(x.unsqueeze(1)).flatten(1),
        "relu",
        FLAT_BELOW,
        False,
        0,
        foreign.RELU,
    ),
    "module in place": (nn.ReLU(inplace=True), "relu", FLAT_BELOW, False, 0, foreign.RELU),
    "one's own module": (
        OwnActivation(),
        "ownactivation",
        (),
        False,
        0,
        foreign.leaky(0.1),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_activations(name: str) -> None:
    """However they are written: their name, their facts, and the same figures as a closed form."""
    function, called, flat, bounded, slope, shape = FUNCTIONS[name]
    net = two_maps(function)
    hidden, readout = find_layers(net, rows())
    assert (hidden.activation, readout.activation) == (called, "none")
    assert hidden.flat == flat
    assert hidden.facts
    assert (hidden.facts.bounded, hidden.facts.slope) == (bounded, slope)
    assert readout.facts is None
    signal, units = (part[0] for part in _looked(net))
    seen = slow_look(net, _follow(shape), rows(), TARGETS, together=False)["hidden"]
    for key, value in (("pre", seen.pre), ("post", seen.post)):
        assert signal[f"{key}_mean"] == pytest.approx(float(value.mean()), rel=1e-5, abs=1e-5)
        assert signal[f"{key}_std"] == pytest.approx(float(value.std(correction=0)), rel=1e-5)
    assert signal["pre_grad_norm"] == pytest.approx(seen.pre_grad_norm(5), rel=1e-5)
    low, high = seen.saturated_between(1e-6)
    assert low - 1e-9 <= signal["saturated_fraction"] <= high + 1e-9
    assert units["no_grad_units"] == seen.no_grad_units()
    assert units.get("dead") == (seen.dead() if shape.flat else None)


def _looked(net: nn.Module) -> tuple[list[Any], list[Any]]:
    found = look(net, rows(), TARGETS, 2)
    return list(found.signal), list(found.units)


def _follow(shape: Shape) -> foreign.Follow:
    def follow(net: Any, x: Tensor, see: Trace) -> Tensor:
        return see("readout", net.readout(see("hidden", net.hidden(x), shape)))

    return follow


def test_functions_that_are_not_known() -> None:
    """A limit for each unit: nothing is flat for all of them, but slopes can be asked for."""
    limit = torch.linspace(-1, 1, 6)
    net = two_maps(lambda x: torch.clamp(x, limit))
    hidden, _ = find_layers(net, rows())
    assert (hidden.activation, hidden.flat) == ("clamp", ())
    signal, units = (part[0] for part in _looked(net))
    with torch.no_grad():
        expected = (net.hidden(rows()) < limit).double().mean()
    assert signal["saturated_fraction"] == pytest.approx(float(expected))
    assert units.get("dead") is None


@pytest.mark.parametrize(
    "function", [lambda x: x, torch.sin, lambda x: x.add_(1.0), lambda x: x[:, :3].repeat(1, 2)]
)
def test_what_is_no_activation(function: Callable[[Tensor], Tensor]) -> None:
    """Pre and post are both what came out of the map."""
    net = two_maps(function)
    hidden, _ = find_layers(net, rows())
    assert (hidden.activation, hidden.facts, hidden.function) == ("none", None, None)
    signal = _looked(net)[0][0]
    with torch.no_grad():
        values = net.hidden(rows()).double()
        std = values.std(correction=0)
    assert signal["pre_mean"] == pytest.approx(float(values.mean()), rel=1e-5)
    assert signal["pre_std"] == signal["post_std"] == pytest.approx(float(std), rel=1e-5)
    assert signal["saturated_fraction"] is None


def test_a_layer_that_is_called_often_is_seen_each_time() -> None:
    """Three calls of one module are three positions of its units."""
    torch.manual_seed(0)
    net = Written(_thrice, map=nn.Linear(4, 4), act=nn.ReLU(inplace=True), head=nn.Linear(4, 3))
    signal, units = (part[0] for part in _looked(net))
    with torch.no_grad():
        net.map.bias[2] = -100.0

    def follow(net: Any, x: Tensor, see: Trace) -> Tensor:
        for time in range(3):
            x = see(f"map {time}", net.map(x), foreign.RELU)
        return see("head", net.head(x))

    signal, units = (part[0] for part in _looked(net))
    seen = slow_look(net, follow, rows(), TARGETS, together=False)
    calls = [seen[f"map {time}"] for time in range(3)]
    pre = torch.stack([call.pre for call in calls])
    assert signal["pre_mean"] == pytest.approx(float(pre.mean()), rel=1e-5)
    assert signal["pre_std"] == pytest.approx(float(pre.std(correction=0)), rel=1e-5)
    squares = sum(call.pre_grad_norm(5) ** 2 for call in calls)
    assert signal["pre_grad_norm"] == pytest.approx(math.sqrt(squares), rel=1e-5)
    dead = torch.stack([call.pre <= 0 for call in calls]).all(0).all(0)
    assert dead[2]
    assert units["dead"] == int(dead.sum())
    assert units["units"] == 4


def _thrice(net: Any, x: Tensor) -> Tensor:
    for _ in range(3):
        x = net.act(net.map(x))
    logits: Tensor = net.head(x)
    return logits


def test_frozen_layers_have_gradients_at_pre() -> None:
    """Parameters that are not trained are the first of the net; signals pass all the same."""
    net = two_maps(F.relu)
    free, _ = (part[0] for part in _looked(net))
    net.hidden.requires_grad_(False)
    frozen, units = (part[0] for part in _looked(net))
    assert frozen["pre_grad_norm"] == pytest.approx(free["pre_grad_norm"], rel=1e-6)
    assert units["zero_grad_fraction"] is None
    assert not any(one.requires_grad for one in net.hidden.parameters())


def test_a_gradient_that_cannot_be_had_is_empty() -> None:
    """Of a part without graph the values are known; its unknown gradient is neither 0 nor nan."""

    def forward(net: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            inner = F.relu(net.a(x))
        logits: Tensor = net.b(inner)
        return logits

    net = Written(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 3))
    signal, units = _looked(net)
    assert signal[0]["pre_std"] > 0
    assert signal[0]["pre_grad_norm"] is None
    assert units[0]["no_grad_units"] is None
    assert signal[1]["pre_grad_norm"] > 0


def test_a_branch_that_the_loss_does_not_see_has_no_gradient() -> None:
    net = Written(
        lambda net, x: net.b(x) + 0 * net.b(x).detach() if net.a(x) is not None else x,
        a=nn.Linear(4, 6),
        b=nn.Linear(4, 3),
    )
    signal, units = _looked(net)
    assert signal[0]["pre_grad_norm"] == 0.0
    assert units[0]["no_grad_units"] == 6
    assert units[0]["zero_grad_fraction"] == 1.0


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("form", ["batch first", "steps first", "packed"])
def test_a_loss_of_final_states_reaches_the_outputs(
    kind: Callable[..., nn.Module], both_ways: bool, form: str
) -> None:
    """The gradient at the last outputs is that at the states, and their values are the same."""
    torch.manual_seed(0)
    net = Written(
        _by_states,
        rnn=kind(4, 6, num_layers=2, batch_first=form == "batch first", bidirectional=both_ways),
        head=nn.Linear(12 if both_ways else 6, 3),
        form=form,
    )
    x = _steps()
    plain = net(x)
    found: list[Tensor] = []
    net.head.register_forward_hook(lambda _m, given, out: found.extend((given[0], out)))
    signal = look(net, x, TARGETS).signal[-2]
    given, out = (one.detach() for one in found[-2:])
    assert torch.equal(out, plain)
    grad = (torch.softmax(out, 1) - F.one_hot(TARGETS, 3)) @ net.head.weight.detach()
    expected = math.sqrt(float((grad.double() ** 2).sum()) / 5)
    assert signal["pre_grad_norm"] == pytest.approx(expected, rel=1e-5)
    assert given.shape == grad.shape


def _by_states(net: Any, x: Tensor) -> Tensor:
    lengths = torch.tensor([7, 7, 4, 2, 1])
    if net.form == "steps first":
        x = x.transpose(0, 1)
    if net.form == "packed":
        x = rnn.pack_padded_sequence(x, lengths, batch_first=True)  # type: ignore[assignment]
    states = net.rnn(x)[1]
    states = states[0] if isinstance(states, tuple) else states
    ways = 2 if net.rnn.bidirectional else 1
    logits: Tensor = net.head(states[-ways:].transpose(0, 1).flatten(1))
    return logits


def test_facts_are_shared_by_layers_of_one_activation() -> None:
    """So that layers of one shape are looked at together."""
    net = nn.Sequential(*(part for _ in range(3) for part in (nn.Linear(4, 4), nn.ReLU())))
    layers: list[Observed] = find_layers(net, rows())
    assert len({id(layer.facts) for layer in layers}) == 1


class Off(nn.Module):
    """A part that somebody has switched off."""

    def forward(self, pre: Tensor) -> Tensor:
        return pre


def test_a_module_that_gives_back_its_input_is_no_norm() -> None:
    net = nn.Sequential(nn.Linear(4, 5), Off(), nn.ReLU(), nn.Linear(5, 3), Off())
    layers = find_layers(net, torch.randn(6, 4))
    assert [(layer.name, layer.norm, layer.activation) for layer in layers] == [
        ("0", "none", "relu"),
        ("3", "none", "none"),
    ]


class Halves(nn.Module):
    """The second half of what one layer returns goes through the next, twice as deep."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        kept, changed = self.first(inputs).chunk(2, dim=1)
        return self.last(kept + self.second(changed))


def test_every_part_of_what_is_taken_apart_comes_from_the_inputs() -> None:
    net, inputs = Halves(), torch.randn(5, 4)
    layers = find_layers(net, inputs)
    assert [layer.name for layer in layers] == ["first", "second", "last"]
    with captured(layers, inputs) as capture:
        net(inputs)
    assert [call.alone for call in capture.all_calls] == [False, False, False]
