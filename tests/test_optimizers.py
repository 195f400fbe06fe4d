"""Updates: by the published formulas; and by the kernel alone, to the last bit the optimizer's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from gradexp.errors import ConfigError
from gradexp.optim import OPTIMIZERS, Elementwise, Update
from tests.nets import config_of

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {}),
    "momentum": ("sgd", {"momentum": 0.9}),
    "nesterov": ("sgd", {"momentum": 0.9, "nesterov": True}),
    "adam": ("adam", {"beta1": 0.8, "eps": 1e-4}),
    "adamw": ("adamw", {"beta2": 0.9}),
    "rmsprop": ("rmsprop", {"momentum": 0.5}),
}
RATES = [0.1, 0.1, 0.03, 0.5, 0.01, 0.2]


class Side:
    """Two groups of parameters, the first with weight decay, and their optimizer."""

    def __init__(self, make: Elementwise) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = [(5, 7), (3,), (4, 4)]
        self.parameters = [
            nn.Parameter(torch.randn(*shape, generator=generator), requires_grad=False)
            for shape in shapes
        ]
        decayed, plain = self.parameters[:2], self.parameters[2:]
        self.optimizer = make(
            [{"params": decayed, "weight_decay": 0.3}, {"params": plain, "weight_decay": 0.0}]
        )

    def draw_gradients(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for parameter in self.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)

    def values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]


def elementwise(case: str) -> Elementwise:
    name, options = CASES[case]
    made = OPTIMIZERS[name].factory(**options)
    assert isinstance(made, Elementwise)
    return made


def by_itself(side: Side, lr: float) -> None:
    for group in side.optimizer.param_groups:
        group["lr"] = lr
    side.optimizer.step()


def test_every_optimizer_is_tried() -> None:
    assert {name for name, _ in CASES.values()} == set(OPTIMIZERS.names())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reloaded_at", [None, 1, 3])
def test_updates_are_the_optimizers_own(case: str, reloaded_at: int | None) -> None:
    make = elementwise(case)
    ours, theirs = Side(make), Side(make)
    update = Update(ours.optimizer, make.kernel)
    for step, lr in enumerate(RATES):
        if step == reloaded_at:
            update.load_state_dict(copy.deepcopy(theirs.optimizer.state_dict()))
        ours.draw_gradients(step)
        theirs.draw_gradients(step)
        update(lr)
        by_itself(theirs, lr)
        pairs = zip(ours.values(), theirs.values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), step


@pytest.mark.parametrize("case", ["momentum", "adam", "adamw"])
def test_only_the_first_step_is_left_to_the_optimizer(case: str) -> None:
    make = elementwise(case)
    side = Side(make)
    update = Update(side.optimizer, make.kernel)
    with mock.patch.object(side.optimizer, "step", wraps=side.optimizer.step) as slow:
        for step in range(4):
            side.draw_gradients(step)
            update(0.1)
        assert slow.call_count == 1
        update.load_state_dict(side.optimizer.state_dict())
        update(0.1)
        assert slow.call_count == 2


def test_an_optimizer_without_a_kernel_steps_itself() -> None:
    side = Side(Elementwise(lambda groups: torch.optim.SGD(groups, lr=1.0)))
    update = Update(side.optimizer, None)
    before = side.values()
    for step in range(2):
        side.draw_gradients(step)
        update(0.0)
    pairs = zip(side.values(), before, strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


# --- against the published formulas, in Python's own arithmetic ------------------------------

START = [1.5, -2.0, 0.25, 0.5]
GRADIENTS = [  # the last so small that every eps counts
    [0.5, -1.0, 2.0, 1e-7],
    [0.25, 3.0, -1.0, -2e-7],
    [-1.5, 0.125, 0.0, 5e-8],
    [2.0, -0.5, 1e-3, 1e-7],
]
LEARNING_RATES = [0.1, 0.1, 0.02, 0.3]
DECAY = 0.3
Memory = dict[str, float]


class Now(NamedTuple):
    """What holds for this step; the first is number 1."""

    number: int
    lr: float
    decay: float


Formula = Callable[[float, float, Now, Memory], float]
"""From a weight and its gradient to the new weight."""


def sgd_by_hand(momentum: float = 0.0, nesterov: bool = False) -> Formula:
    """The velocity v = momentum v + g; w = w - lr v, with Nesterov w - lr (g + momentum v)."""

    def update(w: float, g: float, now: Now, kept: Memory) -> float:
        g += now.decay * w
        kept["v"] = momentum * kept.get("v", 0.0) + g
        return w - now.lr * (g + momentum * kept["v"] if nesterov else kept["v"])

    return update


def adam_by_hand(
    beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, decoupled: bool = False
) -> Formula:
    """Kingma & Ba 2015, algorithm 1; decoupled: w shrinks by lr decay w apart from it."""

    def update(w: float, g: float, now: Now, kept: Memory) -> float:
        shrunk = w - now.lr * now.decay * w if decoupled else w
        g += 0.0 if decoupled else now.decay * w
        kept["m"] = beta1 * kept.get("m", 0.0) + (1 - beta1) * g
        kept["v"] = beta2 * kept.get("v", 0.0) + (1 - beta2) * g * g
        m, v = kept["m"] / (1 - beta1**now.number), kept["v"] / (1 - beta2**now.number)
        return shrunk - now.lr * m / (math.sqrt(v) + eps)

    return update


def rmsprop_by_hand(alpha: float = 0.99, momentum: float = 0.0, eps: float = 1e-8) -> Formula:
    """The gradient over the root of its mean square, then heavy-ball momentum."""

    def update(w: float, g: float, now: Now, kept: Memory) -> float:
        g += now.decay * w
        kept["s"] = alpha * kept.get("s", 0.0) + (1 - alpha) * g * g
        kept["v"] = momentum * kept.get("v", 0.0) + g / (math.sqrt(kept["s"]) + eps)
        return w - now.lr * kept["v"]

    return update


FORMULAS: dict[str, tuple[str, dict[str, Any], Formula]] = {
    "sgd": ("sgd", {}, sgd_by_hand()),
    "sgd, momentum": ("sgd", {"momentum": 0.7}, sgd_by_hand(0.7)),
    "sgd, nesterov": ("sgd", {"momentum": 0.7, "nesterov": True}, sgd_by_hand(0.7, nesterov=True)),
    "adam": ("adam", {}, adam_by_hand()),
    "adam, betas": ("adam", {"beta1": 0.5, "beta2": 0.8}, adam_by_hand(0.5, 0.8)),
    "adam, eps": ("adam", {"eps": 0.5}, adam_by_hand(eps=0.5)),
    "adam, no memory": ("adam", {"beta1": 0.0, "beta2": 0.0}, adam_by_hand(0.0, 0.0)),
    "adamw": ("adamw", {}, adam_by_hand(decoupled=True)),
    "adamw, options": (
        "adamw",
        {"beta1": 0.6, "beta2": 0.7, "eps": 0.1},
        adam_by_hand(0.6, 0.7, 0.1, decoupled=True),
    ),
    "rmsprop": ("rmsprop", {}, rmsprop_by_hand()),
    "rmsprop, options": (
        "rmsprop",
        {"alpha": 0.6, "momentum": 0.5, "eps": 0.2},
        rmsprop_by_hand(0.6, 0.5, 0.2),
    ),
}
RATES_BY_DEFAULT = {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3}


def by_hand(formula: Formula, decay: float) -> list[list[float]]:
    """The weights after each step."""
    weights, memories, after = list(START), [Memory() for _ in START], []
    for number, (gradients, lr) in enumerate(zip(GRADIENTS, LEARNING_RATES, strict=True), start=1):
        weights = [
            formula(w, g, Now(number, lr, decay), kept)
            for w, g, kept in zip(weights, gradients, memories, strict=True)
        ]
        after.append(weights)
    return after


@pytest.mark.parametrize("case", FORMULAS)
def test_updates_follow_the_formula(case: str) -> None:
    """With and without weight decay, each in its own group; rates change between steps."""
    name, options, formula = FORMULAS[case]
    make = OPTIMIZERS[name].factory(**options)
    decayed, plain = (
        nn.Parameter(torch.tensor(START, dtype=torch.float64), requires_grad=False)
        for _ in range(2)
    )
    optimizer = make(
        [{"params": [decayed], "weight_decay": DECAY}, {"params": [plain], "weight_decay": 0.0}]
    )
    update = Update(optimizer, getattr(make, "kernel", None))
    expected = zip(by_hand(formula, DECAY), by_hand(formula, 0.0), strict=True)
    for step, (with_decay, without) in enumerate(expected):
        for parameter in (decayed, plain):
            parameter.grad = torch.tensor(GRADIENTS[step], dtype=torch.float64)
        update(LEARNING_RATES[step])
        assert decayed.tolist() == pytest.approx(with_decay, rel=1e-6), step
        assert plain.tolist() == pytest.approx(without, rel=1e-6), step


def test_every_formula_is_tried_with_and_without_options() -> None:
    tried = {name for name, options, _ in FORMULAS.values() if options}
    assert tried == {name for name, options, _ in FORMULAS.values() if not options}
    assert tried == set(OPTIMIZERS.names()) == set(RATES_BY_DEFAULT)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
@pytest.mark.parametrize("lr", [None, 0.25])
def test_the_rate_is_the_one_asked_for(name: str, lr: float | None) -> None:
    make = OPTIMIZERS[name].factory(**({} if lr is None else {"lr": lr}))
    optimizer = make([{"params": [nn.Parameter(torch.ones(2))], "weight_decay": 0.0}])
    assert [group["lr"] for group in optimizer.param_groups] == [lr or RATES_BY_DEFAULT[name]]


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_a_device_without_fused_kernels_is_served_by_the_optimizer(name: str) -> None:
    make = OPTIMIZERS[name].factory()
    parameter = nn.Parameter(torch.ones(2, device="meta"), requires_grad=False)
    parameter.grad = torch.ones(2, device="meta")
    optimizer = make([{"params": [parameter], "weight_decay": 0.0}])
    update = Update(optimizer, getattr(make, "kernel", None))
    with mock.patch.object(optimizer, "step") as own:
        update(0.1)
        update(0.1)
    assert own.call_count == 2


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_here_kernels_are_fused(name: str) -> None:
    make = OPTIMIZERS[name].factory()
    optimizer = make([{"params": [nn.Parameter(torch.ones(2))], "weight_decay": 0.0}])
    assert optimizer.param_groups[0]["fused"] is True


def test_nesterov_needs_momentum() -> None:
    message = "nesterov: true has no effect without momentum above 0"
    with pytest.raises(ConfigError, match=message):
        OPTIMIZERS["sgd"].factory(nesterov=True)
    with pytest.raises(ConfigError, match=rf"train\.optimizer.*{message}"):
        config_of("train.optimizer={name: sgd, nesterov: true}")
    config_of("train.optimizer={name: sgd, nesterov: true, momentum: 0.1}")


@pytest.mark.parametrize(
    "optimizer",
    [
        "{name: sgd, lr: 0}",
        "{name: sgd, momentum: 1.0}",
        "{name: sgd, momentum: -0.1}",
        "{name: adam, beta1: 1.0}",
        "{name: adam, beta2: 1.0}",
        "{name: adamw, eps: 0}",
        "{name: rmsprop, alpha: 1.0}",
    ],
)
def test_options_out_of_range_are_refused(optimizer: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.optimizer"):
        config_of(f"train.optimizer={optimizer}")
