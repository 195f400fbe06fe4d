"""An update by the kernel alone is the optimizer's own step, to the last bit."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from gradexp.optim import OPTIMIZERS, Elementwise, Update

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
