"""A probe as a whole: its batches, what it tells its parts, and parts of one's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradexp.errors import RunError
from gradexp.nn.observed import Observed
from gradexp.probes import (
    PROBES,
    Look,
    Measured,
    Probe,
    Prober,
    ProbeRows,
    ProbeSet,
    Stack,
    Subject,
    added_columns,
    most_at_once,
)
from gradexp.probes.finding import find_layers
from gradexp.records import Column
from gradexp.records.tables import Value

INPUTS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(7) % 2


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def looked(
    module: nn.Module, *probes: Probe, batch_size: int = 3, step: int = 5, inputs: Any = INPUTS
) -> ProbeRows:
    layers = find_layers(module, inputs)
    loss = nn.CrossEntropyLoss(reduction="sum")
    subject = Subject(module, layers, loss, lambda: [None] * len(layers))
    return Prober(subject, ProbeSet(inputs, TARGETS, batch_size), probes).look(step)


def own(name: str) -> Column:
    return Column(name, "float", "a figure of one's own")


# --- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("examples", "batch_size", "sizes"),
    [
        (7, 7, [7]),
        (7, 100, [7]),
        (7, 3, [3, 2, 2]),
        (8, 4, [4, 4]),
        (9, 8, [5, 4]),
        (7, 1, [3, 2, 2]),
        (3, 2, [3]),
        (1, 5, [1]),
        (5, 2, [3, 2]),
    ],
)
def test_batches_are_nearly_equal_and_never_of_one(
    examples: int, batch_size: int, sizes: list[int]
) -> None:
    inputs, targets = torch.arange(examples), 10 * torch.arange(examples)
    batches = list(ProbeSet(inputs, targets, batch_size).batches())
    assert [len(one) for one, _ in batches] == sizes
    assert torch.cat([one for one, _ in batches]).tolist() == list(range(examples))
    assert all(torch.equal(10 * one, more) for one, more in batches)


def test_examples_of_several_tensors_are_split_alike() -> None:
    """In tuples and mappings, also within one another."""
    inputs = {"a": torch.arange(5), "b": (torch.arange(5) + 10, torch.arange(5) + 20)}
    examples = ProbeSet(inputs, torch.arange(5), 3)
    assert len(examples) == 5
    (one, first), (other, second) = examples.batches()
    assert one["a"].tolist() == first.tolist() == [0, 1, 2]
    assert [part.tolist() for part in one["b"]] == [[10, 11, 12], [20, 21, 22]]
    assert other["a"].tolist() == second.tolist() == [3, 4]
    assert [part.tolist() for part in other["b"]] == [[13, 14], [23, 24]]


def observed(kind: str, units: int) -> Observed:
    return Observed("layer", kind, 1, 1, units, ())


def test_how_many_examples_go_through_a_net_together() -> None:
    """Eight million values of pre, where no example needs the others and no image is large."""
    dense = [observed("linear", 2**10), observed("linear", 2**10)]
    assert most_at_once(dense, 64, alone=True) == 2**23 // 2**11 == 4096
    assert most_at_once(dense, 5000, alone=True) == 5000
    assert most_at_once(dense, 64, alone=False) == 64
    assert most_at_once([*dense, observed("conv", 2)], 64, alone=True) == 64


# --- what parts are told -----------------------------------------------------------------------


class Listener(Probe):
    """Keeps all that it is told."""

    table = "signal"
    columns = (own("heard"),)

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self.stacks: list[Stack] = []

    def begin(self, look: Look) -> None:
        self.looks.append(look)

    def add(self, stack: Stack) -> None:
        self.stacks.append(stack)

    def rows(self) -> list[Mapping[str, Value]]:
        return [{"heard": float(index)} for index, _ in enumerate(self.looks[-1].layers)]


def test_parts_are_told_of_every_layer_and_batch() -> None:
    """Layers of one shape together; gradients are those of each example's own loss."""
    listener, module = Listener(), net()
    rows = looked(module, listener)
    (look,) = listener.looks
    assert look.step == 5
    assert [layer.name for layer in look.layers] == ["0", "2", "4"]
    groups = [list(stack.indices) for stack in listener.stacks]
    assert groups == [[0, 1], [2]] * 3
    assert [stack.examples for stack in listener.stacks] == [3, 3, 2, 2, 2, 2]
    first = torch.cat([stack.pre[0] for stack in listener.stacks[::2]])
    torch.testing.assert_close(first, module[0](INPUTS).detach())
    second = torch.cat([stack.post[1] for stack in listener.stacks[::2]])
    torch.testing.assert_close(second, module[:4](INPUTS).detach())
    grads = [stack.pre_grad[0] for stack in listener.stacks[1::2] if stack.pre_grad is not None]
    logits = module(INPUTS).detach()
    own_loss = torch.softmax(logits, 1) - torch.nn.functional.one_hot(TARGETS, 2)
    torch.testing.assert_close(torch.cat(grads), own_loss)
    assert [row["heard"] for row in rows.signal] == [0.0, 1.0, 2.0]
    assert [(row["step"], row["layer_index"], row["layer"]) for row in rows.signal] == [
        (5, 1, "0"),
        (5, 2, "2"),
        (5, 3, "4"),
    ]


def test_inactive_values_are_finite_ones() -> None:
    """A stack says where pre lies in a flat region; what is not a number lies nowhere."""
    listener, module = Listener(), net()
    looked(module, listener, batch_size=7)
    stack = listener.stacks[0]
    assert stack.finite is None
    assert torch.equal(stack.inactive.bool(), stack.pre <= 0)
    with torch.no_grad():
        module[0].bias.copy_(torch.tensor([math.nan, -math.inf, math.inf, -100.0]))
    looked(module, listener, batch_size=7)
    stack = listener.stacks[-2] if len(listener.stacks[-2].indices) == 1 else listener.stacks[2]
    assert stack.finite is not None
    assert stack.finite[0, 0].tolist() == [False, False, False, True]
    assert stack.inactive[0, 0].tolist() == [0, 0, 0, 1]


def test_a_module_that_leaves_layers_out_cannot_be_probed() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = self.a(x) if self.calls > 2 else self.a(x) + self.b(x)
            return out

    with pytest.raises(RunError, match="b is not called for every batch"):
        looked(Moody(), Listener())


def test_dropout_is_the_same_at_every_look() -> None:
    """And random numbers of the program go on as if there had been no look."""
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2))
    listener = Listener()
    torch.manual_seed(3)
    following = torch.rand(3)
    torch.manual_seed(3)
    looked(module, listener)
    assert torch.equal(torch.rand(3), following)
    looked(module, listener)
    half = len(listener.stacks) // 2
    for one, other in zip(listener.stacks[:half], listener.stacks[half:], strict=True):
        assert torch.equal(one.pre, other.pre)


def test_a_look_is_one_at_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A net at evaluation is looked at in training mode; one that trains in part stays so."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    seen: list[list[bool]] = []
    forward = module.forward
    monkeypatch.setattr(
        module, "forward", lambda x: (seen.append([m.training for m in module]), forward(x))[1]
    )
    module.eval()
    looked(module, Listener())
    assert all(all(modes) for modes in seen)
    assert not any(part.training for part in module.modules())
    seen.clear()
    module.train()
    module[1].eval()
    looked(module, Listener())
    assert seen
    assert all(modes == [True, False, True, True] for modes in seen)


# --- a figure of one's own ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("combine", "expected"),
    [("mean", (3 * 1 + 2 * 2 + 2 * 6) / 7), ("max", 6.0), ("min", 1.0), ("sum", 9.0)],
)
def test_batches_are_combined(combine: Any, expected: float) -> None:
    """Of batches of 3, 2 and 2 examples; a mean by their sizes."""
    told = iter([1.0] * 3 + [2.0] * 3 + [6.0] * 3)
    probe = Measured(
        own("told"), lambda _layer, _pre, _post, _grad: torch.tensor(next(told)), combine
    )
    rows = looked(net(), probe)
    assert [row["told"] for row in rows.signal] == pytest.approx([expected] * 3)


def test_a_measure_is_given_one_layer_at_a_time() -> None:
    """Its pre, post and gradient; the next look begins anew."""
    given: list[tuple[str, tuple[int, ...], bool]] = []

    def measure(layer: Observed, pre: Tensor, post: Tensor, grad: Tensor | None) -> Tensor:
        assert grad is not None
        given.append((layer.activation, tuple(pre.shape), torch.equal(post, pre.clamp(min=0))))
        return grad.abs().sum() + pre.sum()

    probe, module = Measured(own("mine"), measure, "sum"), net()
    first, again = (looked(module, probe, batch_size=7) for _ in range(2))
    assert given[:3] == [("relu", (7, 4), True), ("relu", (7, 4), True), ("none", (7, 2), False)]
    assert [row["mine"] for row in first.signal] == [row["mine"] for row in again.signal]
    logits = module(INPUTS).detach()
    grad = torch.softmax(logits, 1) - torch.nn.functional.one_hot(TARGETS, 2)
    expected = float(grad.abs().sum() + logits.sum())
    assert first.signal[2]["mine"] == pytest.approx(expected, rel=1e-5)


def test_columns_of_registered_probes_are_added_to_their_table() -> None:
    assert added_columns() == {"signal": [], "units": []}
    column = own("sharpness")
    PROBES.register("sharpness")(
        lambda: Measured(column, lambda _layer, pre, _post, _grad: pre.max(), "max")
    )
    try:
        assert added_columns() == {"signal": [column], "units": []}
        rows = looked(net(), *(entry.make() for entry in PROBES))
        module = net()
        assert rows.signal[0]["sharpness"] == pytest.approx(float(module[0](INPUTS).detach().max()))
        assert {"pre_mean", "pre_grad_norm", "sharpness"} <= set(rows.signal[0])
        assert {"dead", "units", "zero_grad_fraction"} <= set(rows.units[0])
    finally:
        PROBES.remove("sharpness")


def test_the_state_of_all_parts_is_kept_in_order() -> None:
    class Counting(Listener):
        def state(self) -> Any:
            return len(self.looks)

        def load(self, state: Any) -> None:
            self.loaded = state

    layers = find_layers(net(), INPUTS)
    subject = Subject(net(), layers, nn.CrossEntropyLoss(reduction="sum"), lambda: [None] * 3)
    parts = Counting(), Listener(), Counting()
    prober = Prober(subject, ProbeSet(INPUTS, TARGETS, 7), parts)
    parts[2].looks += [None] * 3  # type: ignore[list-item]
    assert prober.state() == [0, None, 3]
    prober.load([7, None, 8])
    assert (parts[0].loaded, parts[2].loaded) == (7, 8)
