"""What an activation of one's own says of itself is checked before a net is built with it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradexp.errors import ConfigError
from gradexp.nn import ACTIVATIONS
from gradexp.nn.activations import Activation
from gradexp.train.learner import build_module
from tests.nets import config_of

INF = math.inf
Function = Callable[[Tensor], Tensor]


class Own(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, pre: Tensor) -> Tensor:
        return self.function(pre)


def built_with(facts: Activation, *overrides: str) -> nn.Module:
    ACTIVATIONS.register("own")(lambda: facts)
    module, _ = build_module(config_of(*overrides, "model.activation=own"))
    return module


def own(function: Function, **facts: object) -> Activation:
    return Activation(lambda _units: Own(function), **facts)  # type: ignore[arg-type]


def stairs(pre: Tensor) -> Tensor:
    return pre.clamp(-1, 0) + pre.clamp(2, 3)


HIDDEN = r"^activation 'own' "
FALSE: dict[str, tuple[Activation, str]] = {
    "softmax over units": (
        own(lambda pre: pre.softmax(0)),
        "is not elementwise: a value depends on its neighbours",
    ),
    "centred over the batch": (own(lambda pre: pre - pre.mean(0)), "is not elementwise"),
    "in place": (own(lambda pre: pre.relu_()), "works in place: it changes its input"),
    "in place, in part": (own(lambda pre: pre.clamp_(max=1e5)), "works in place"),
    "another shape": (own(lambda pre: pre.flatten()), "must return a tensor of the shape"),
    "no tensor": (own(lambda pre: (pre,)), "must return a tensor of the shape"),  # type: ignore[arg-type, return-value]
    "a slope where it is said to be flat": (
        own(F.leaky_relu, flat=((-INF, 0.0),)),
        r"is said to be flat at -1e\+06, but has a slope there: mend `flat`",
    ),
    "flat too far": (own(F.relu, flat=((-INF, 0.001),)), "is said to be flat at 0.001, but"),
    "flat from too early on": (own(F.relu6, flat=((5.999, INF),)), "is said to be flat at 5.99"),
    "flat in an interval too much": (
        own(stairs, flat=((-INF, -1.0), (0.0, 2.5), (3.0, INF))),
        "is said to be flat at 2.01, but",
    ),
    "steep, but slow": (
        own(lambda pre: F.leaky_relu(pre, 0.019), steep=True),
        "is said to be steep, but has slopes between 0 and 0.02: mend `steep`",
    ),
    "steep, but saturating": (own(torch.tanh, steep=True), "is said to be steep"),
    "bounded, but linear": (
        own(F.relu, flat=((-INF, 0.0),), bounded=True),
        "is said to be bounded, but grows without bound: mend `bounded`",
    ),
    "bounded on one side": (
        own(lambda pre: pre.clamp(max=1.0), bounded=True),
        "is said to be bounded",
    ),
    "no turn, but one": (
        own(F.silu, turns=()),
        "both rises and falls between -inf and inf: `turns` must name every place",
    ),
    "a turn left out": (
        own(lambda pre: (pre.abs() - 1).abs(), turns=(-1.0, 1.0)),
        "both rises and falls between -1 and 1: ",
    ),
    "a turn at the wrong place": (
        own(torch.abs, turns=(0.5,)),
        "both rises and falls between -inf and 0.5: ",
    ),
    "turns without end": (own(torch.sin, turns=(0.0,)), "both rises and falls between -inf and 0"),
}
TRUE: dict[str, Activation] = {
    "nothing said": own(torch.sin),
    "turns that are not known": own(lambda pre: torch.sin(pre) * pre, turns=None),
    "mish by hand": own(lambda pre: pre * torch.tanh(F.softplus(pre))),
    "gelu by hand": own(lambda pre: pre * 0.5 * (1 + torch.erf(pre / math.sqrt(2)))),
    "snake": own(lambda pre: pre + torch.sin(pre) ** 2, turns=()),
    "exponential": own(lambda pre: torch.exp(-pre * pre), bounded=True, turns=(0.0,)),
    "leaky just steep": own(lambda pre: F.leaky_relu(pre, 0.021), steep=True, turns=()),
    "steps": own(
        stairs, flat=((-INF, -1.0), (0.0, 2.0), (3.0, INF)), steep=True, bounded=True, turns=()
    ),
    "turns in any order": own(lambda pre: (pre.abs() - 1).abs(), turns=(1.0, 0.0, -1.0)),
    "constant": own(lambda pre: pre * 0 + 1, flat=((-INF, INF),), bounded=True, turns=()),
    "large, but bounded": own(lambda pre: 900 * torch.tanh(pre), bounded=True, turns=()),
}


@pytest.mark.parametrize("case", FALSE)
@pytest.mark.parametrize("family", ["mlp", "torchvision"])
def test_what_does_not_hold_is_refused(case: str, family: str) -> None:
    facts, told = FALSE[case]
    chosen = ["model.family=mlp"]
    if family == "torchvision":
        chosen = ["model={family: torchvision, name: mobilenet_v3_small}"]
    with pytest.raises(ConfigError, match=HIDDEN + told) as caught:
        built_with(facts, *chosen)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("case", TRUE)
def test_what_holds_builds(case: str) -> None:
    network = built_with(TRUE[case])
    assert sum(isinstance(module, Own) for module in network.modules()) > 0


def test_a_learned_activation_is_checked_as_it_begins() -> None:
    """On one unit, in double precision; the one that is built stays what it is."""
    facts = Activation(lambda units: nn.PReLU(units, init=0.3), steep=True, turns=())
    network = built_with(facts)
    slopes = [module.weight for module in network.modules() if isinstance(module, nn.PReLU)]
    assert slopes
    assert all(one.dtype == torch.float32 and (one == 0.3).all() for one in slopes)
    ACTIVATIONS.remove("own")
    with pytest.raises(ConfigError, match="is said to be steep"):
        built_with(Activation(lambda units: nn.PReLU(units, init=0.01), steep=True))
