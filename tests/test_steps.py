"""Norms of every step, from both keepers of parameters, and their lines in `gradients.csv`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradexp.nn.observed import Observed
from gradexp.optim.parameters import (
    FlatParameters,
    Parameters,
    SeparateParameters,
    keep,
    ordered,
)
from gradexp.probes.steps import LayerNorms, StepProbe, gradient_lines

GRAD, CLIPPED, BIAS, WEIGHT, UPDATE = range(5)


class Net(nn.Module):
    """Two layers, the second without bias, and a parameter that belongs to neither."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 1, bias=False)
        self.gain = nn.Parameter(torch.ones(2))

    def layers(self) -> list[Observed]:
        return [
            observed("first", (self.first.weight,), (self.first.bias,)),
            observed("second", (self.second.weight,)),
        ]


def observed(name: str, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...] = ()) -> Observed:
    return Observed(name, "linear", 1, 1, 1, weights, biases)


def kept_flat(net: Net) -> Parameters:
    return keep([net.first.weight, net.second.weight], net.parameters())


def kept_apart(net: Net) -> Parameters:
    return SeparateParameters(ordered([net.first.weight, net.second.weight], net.parameters()), 2)


@pytest.fixture(params=[kept_flat, kept_apart])
def keeper(request: pytest.FixtureRequest) -> Callable[[Net], Parameters]:
    return request.param  # type: ignore[no-any-return]


Keeper = Callable[[Net], Parameters]


def begun(keeper: Keeper) -> tuple[Net, StepProbe]:
    torch.manual_seed(0)
    net = Net()
    return net, StepProbe(net.layers(), keeper(net))


@torch.no_grad()
def set_gradients(net: Net, *values: float) -> None:
    """One value at the start of the gradient of each: first weight, bias, second weight, gain."""
    tensors = (net.first.weight, net.first.bias, net.second.weight, net.gain)
    for tensor, value in zip(tensors, values, strict=True):
        if tensor.grad is None:
            tensor.grad = torch.zeros_like(tensor)
        tensor.grad.zero_()
        tensor.grad.view(-1)[0] = value


@torch.no_grad()
def scale_gradients(net: Net, factor: float) -> None:
    for one in net.parameters():
        assert one.grad is not None
        one.grad.mul_(factor)


def one_step(probe: StepProbe, loss: float = 1.0) -> None:
    """A step that only measures: weights stay."""
    probe.gradients(torch.tensor(loss))
    probe.updated()


def test_the_keepers_are_two() -> None:
    assert isinstance(kept_flat(Net()), FlatParameters)
    assert isinstance(kept_apart(Net()), SeparateParameters)


def test_norms_of_gradients(keeper: Keeper) -> None:
    """All parameters count in the total; weights and biases stand apart."""
    net, probe = begun(keeper)
    set_gradients(net, 3.0, 4.0, -12.0, 84.0)
    one_step(probe, 2.5)
    values = probe.take()
    row = values.rows()[0]
    assert row["grad_norm"] == pytest.approx(85.0, rel=1e-6)
    assert row["clip_coefficient"] == 1.0
    assert row["loss"] == 2.5
    assert values.layers[0, GRAD].tolist() == pytest.approx([3.0, 12.0])
    assert values.layers[0, CLIPPED].tolist() == pytest.approx([3.0, 12.0])
    assert values.layers[0, BIAS, 0] == pytest.approx(4.0)
    assert math.isnan(values.layers[0, BIAS, 1])
    assert values.loss.tolist() == [2.5]


def test_norms_of_the_step_at_hand(keeper: Keeper) -> None:
    """Before it is taken: which layer's gradient is not finite?"""
    net = Net()
    parameters = keeper(net)
    probe = StepProbe(net.layers(), parameters)
    set_gradients(net, 3.0, math.nan, -12.0, 84.0)
    norms = probe.gradient_norms_of(parameters.gradient_norms())
    assert norms.tolist() == pytest.approx([3.0, 12.0])


def test_all_entries_of_a_layer_count(keeper: Keeper) -> None:
    net, probe = begun(keeper)
    set_gradients(net, 0, 0, 0, 0)
    generator = torch.Generator().manual_seed(1)
    for one in net.parameters():
        assert one.grad is not None
        one.grad.normal_(generator=generator)
    expected = [
        float(np.sqrt((one.grad.double().numpy() ** 2).sum()))
        for one in (net.first.weight, net.second.weight, net.first.bias, net.gain)
        if one.grad is not None
    ]
    one_step(probe)
    values = probe.take()
    assert values.layers[0, GRAD].tolist() == pytest.approx(expected[:2], rel=1e-6)
    assert values.layers[0, BIAS, 0] == pytest.approx(expected[2], rel=1e-6)
    assert values.rows()[0]["grad_norm"] == pytest.approx(math.hypot(*expected), rel=1e-6)
    weights = [float(one.detach().double().norm()) for one in (net.first.weight, net.second.weight)]
    assert values.layers[0, WEIGHT].tolist() == pytest.approx(weights, rel=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-38, 1e-22, 1e-19, 2e19, 1e30])
def test_tiny_and_huge_gradients_survive(keeper: Keeper, size: float) -> None:
    """Their squares leave the range of float32, and those of the one do not decide for another."""
    net, probe = begun(keeper)
    set_gradients(net, size, 2 * size, 1.0, 0.0)
    one_step(probe)
    values = probe.take()
    expected = float(torch.tensor(size))
    assert values.layers[0, GRAD].tolist() == pytest.approx([expected, 1.0], rel=1e-6)
    assert values.layers[0, BIAS, 0] == pytest.approx(2 * expected, rel=1e-6)


def test_a_gradient_of_zero_was_not_clipped(keeper: Keeper) -> None:
    net, probe = begun(keeper)
    set_gradients(net, 0.0, 0.0, 0.0, 0.0)
    probe.gradients(torch.tensor(1.0))
    probe.clipped()
    probe.updated()
    values = probe.take()
    assert values.rows()[0]["clip_coefficient"] == 1.0
    assert values.rows()[0]["grad_norm"] == 0.0
    assert values.layers[0, [GRAD, CLIPPED, UPDATE]].tolist() == [[0.0, 0.0]] * 3


def test_what_clipping_left(keeper: Keeper) -> None:
    """Against what was about to be clipped, L1 included; gradients themselves are without both."""
    net, probe = begun(keeper)
    set_gradients(net, 3.0, 0.0, 4.0, 0.0)
    probe.gradients(torch.tensor(1.0))
    assert float(probe.total_norm) == pytest.approx(5.0)
    set_gradients(net, 6.0, 0.0, 8.0, 0.0)
    probe.regularized()
    assert float(probe.total_norm) == pytest.approx(10.0)
    scale_gradients(net, 0.25)
    probe.clipped()
    probe.updated()
    values = probe.take()
    assert values.rows()[0]["grad_norm"] == pytest.approx(5.0)
    assert values.rows()[0]["clip_coefficient"] == pytest.approx(0.25)
    assert values.layers[0, GRAD].tolist() == pytest.approx([3.0, 4.0])
    assert values.layers[0, CLIPPED].tolist() == pytest.approx([1.5, 2.0])


def test_without_clipping_the_optimizer_gets_what_was_regularized(keeper: Keeper) -> None:
    net, probe = begun(keeper)
    set_gradients(net, 3.0, 0.0, 4.0, 0.0)
    probe.gradients(torch.tensor(1.0))
    scale_gradients(net, 2.0)
    probe.regularized()
    probe.updated()
    values = probe.take()
    assert values.rows()[0]["clip_coefficient"] == 1.0
    assert values.layers[0, CLIPPED].tolist() == pytest.approx([6.0, 8.0])


def test_clipped_gradients_of_a_scaled_loss(keeper: Keeper) -> None:
    net, probe = begun(keeper)
    set_gradients(net, 3.0, 0.0, 4.0, 0.0)
    probe.gradients(torch.tensor(1.0))
    scale_gradients(net, 512.0)
    probe.clipped(torch.tensor(1024.0))
    probe.updated()
    values = probe.take()
    assert values.rows()[0]["clip_coefficient"] == pytest.approx(0.5)
    assert values.layers[0, CLIPPED].tolist() == pytest.approx([1.5, 2.0])


def test_steps_of_which_only_some_were_clipped(keeper: Keeper) -> None:
    net, probe = begun(keeper)
    for factor in (1.0, 0.5, 1.0):
        set_gradients(net, 3.0, 0.0, 4.0, 0.0)
        probe.gradients(torch.tensor(1.0))
        if factor != 1.0:
            scale_gradients(net, factor)
            probe.clipped()
        probe.updated()
    values = probe.take()
    ratios = [row["clip_coefficient"] for row in values.rows()]
    assert ratios == pytest.approx([1.0, 0.5, 1.0])
    assert values.layers[:, CLIPPED, 1].tolist() == pytest.approx([4.0, 2.0, 4.0])
    assert len(values) == values.updates == 3


def test_updates_are_how_far_weights_moved(keeper: Keeper) -> None:
    """Step after step from where they were; biases and others do not count."""
    net, probe = begun(keeper)
    set_gradients(net, 1.0, 1.0, 1.0, 1.0)
    before = float(net.first.weight.detach().double().norm())
    for moved in (3.0, 0.0):
        probe.gradients(torch.tensor(1.0))
        with torch.no_grad():
            net.first.weight[0, 0] += moved
            net.first.weight[1, 1] -= 4 * moved / 3
            net.first.bias += 100.0
        probe.updated()
    values = probe.take()
    assert values.layers[0, UPDATE, 0] == pytest.approx(5.0, rel=1e-5)
    assert values.layers[0, UPDATE, 1] == 0.0
    assert values.layers[1, UPDATE].tolist() == [0.0, 0.0]
    assert values.layers[0, WEIGHT, 0] == pytest.approx(before, rel=1e-6)
    assert values.layers[1, WEIGHT, 0] == pytest.approx(
        float(net.first.weight.detach().double().norm()), rel=1e-6
    )


def test_a_tiny_update_of_large_weights_is_measured(keeper: Keeper) -> None:
    """The difference of the weights themselves, not of their norms."""
    net, probe = begun(keeper)
    with torch.no_grad():
        net.first.weight.fill_(1000.0)
    set_gradients(net, 1.0, 1.0, 1.0, 1.0)
    probe.gradients(torch.tensor(1.0))
    with torch.no_grad():
        net.first.weight[0, 0] += 2.0**-12
        net.first.weight[0, 1] -= 2.0**-12
    probe.updated()
    assert probe.take().layers[0, UPDATE, 0] == pytest.approx(2.0**-11.5, rel=1e-6)


def test_a_last_step_without_update(keeper: Keeper) -> None:
    net, probe = begun(keeper)
    set_gradients(net, 1.0, 1.0, 1.0, 1.0)
    one_step(probe, 1.0)
    probe.gradients(torch.tensor(2.0))
    values = probe.take()
    assert (len(values), values.updates) == (2, 1)
    assert values.layers[0, UPDATE].tolist() == [0.0, 0.0]
    assert np.isnan(values.layers[1, UPDATE]).all()
    assert values.loss.tolist() == [1.0, 2.0]


def test_a_step_whose_update_was_taken_back(keeper: Keeper) -> None:
    net, probe = begun(keeper)
    set_gradients(net, 1.0, 1.0, 1.0, 1.0)
    for loss in (1.0, 2.0, 3.0, 4.0):
        one_step(probe, loss)
    cut = probe.take().ended_before_update(2)
    assert (len(cut), cut.updates, cut.loss.tolist()) == (3, 2, [1.0, 2.0, 3.0])
    assert len(cut.layers) == 3


def test_taking_begins_anew(keeper: Keeper) -> None:
    net, probe = begun(keeper)
    for loss in (1.0, 2.0):
        set_gradients(net, loss, 0.0, 0.0, 0.0)
        one_step(probe, loss)
        values = probe.take()
        assert values.loss.tolist() == [loss]
        assert values.layers[:, GRAD, 0].tolist() == pytest.approx([loss])


def test_accuracy_is_a_share_of_each_batch(keeper: Keeper) -> None:
    """Also of a last batch that is smaller; none where classes are not known."""
    net, probe = begun(keeper)
    set_gradients(net, 1.0, 1.0, 1.0, 1.0)
    batches = [([0, 1, 2, 0], [0, 1, 1, 1]), ([1, 1, 1, 1], [1, 1, 1, 0]), ([2], [2])]
    for count, expected in ((2, [0.5, 0.75]), (3, [0.5, 0.75, 1.0])):
        for predicted, targets in batches[:count]:
            probe.gradients(torch.tensor(1.0), torch.tensor(predicted), torch.tensor(targets))
            probe.updated()
        values = probe.take()
        assert [row["accuracy"] for row in values.rows()] == expected
        assert values.classified
    one_step(probe)
    values = probe.take()
    assert not values.classified
    assert set(values.rows()[0]) == {"loss", "grad_norm", "clip_coefficient"}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows(keeper: Keeper, bad: float) -> None:
    net, probe = begun(keeper)
    set_gradients(net, 1.0, 0.0, bad, 0.0)
    one_step(probe, bad)
    values = probe.take()
    assert values.layers[0, GRAD, 0] == pytest.approx(1.0)
    assert not math.isfinite(values.layers[0, GRAD, 1])
    assert not math.isfinite(values.rows()[0]["grad_norm"])
    assert not math.isfinite(values.loss[0])


# --- parameters as they are in other people's nets ---------------------------------------------


def test_a_weight_without_gradient_has_norm_0() -> None:
    _, probe = begun(kept_apart)
    one_step(probe)
    values = probe.take()
    assert values.layers[0, GRAD].tolist() == [0.0, 0.0]
    assert values.rows()[0]["grad_norm"] == 0.0
    assert (values.layers[0, WEIGHT] > 0).all()


def test_what_is_trained_goes_back_to_where_it_was(keeper: Keeper) -> None:
    net = Net()
    parameters = keeper(net)
    before = [one.clone() for one in parameters.state()]
    with torch.no_grad():
        for one in net.parameters():
            one.add_(1.0)
    changed = [one.clone() for one in net.parameters()]
    parameters.load(before)
    for now, moved in zip(net.parameters(), changed, strict=True):
        assert torch.allclose(now, moved - 1.0, atol=1e-6)


def test_what_has_no_gradient_is_passed_over() -> None:
    net = Net()
    parameters = kept_apart(net)
    set_gradients(net, 3.0, 4.0, -12.0, 84.0)
    net.first.weight.grad = None
    assert [float(one.abs().sum()) for one in parameters.gradients()] == [12.0, 84.0, 4.0]
    parameters.clear()
    assert net.first.weight.grad is None
    assert [float(one.abs().sum()) for one in parameters.gradients()] == [0.0, 0.0, 0.0]


def test_double_precision_stays_where_some_have_no_gradient() -> None:
    net = Net().double()
    probe = StepProbe(net.layers(), kept_apart(net))
    set_gradients(net, 1.0, 1e-9, 1e-9, 1e-9)
    net.gain.grad = None
    assert net.first.weight.grad is not None
    net.first.weight.grad.view(-1)[0] = 1 + 1e-12
    one_step(probe)
    assert probe.take().layers[0, GRAD, 0] == pytest.approx(1 + 1e-12, rel=1e-14)


def test_a_shared_weight_counts_once_in_the_total() -> None:
    net = Net()
    layers = [observed("one", (net.first.weight,)), observed("two", (net.first.weight,))]
    parameters = keep([net.first.weight, net.first.weight], net.parameters())
    assert isinstance(parameters, SeparateParameters)
    set_gradients(net, 3.0, 4.0, 0.0, 0.0)
    probe = StepProbe(layers, parameters)
    one_step(probe)
    values = probe.take()
    assert values.layers[0, GRAD].tolist() == pytest.approx([3.0, 3.0])
    assert values.rows()[0]["grad_norm"] == pytest.approx(5.0)


def test_a_weight_of_several_parts_is_one_norm() -> None:
    net = Net()
    layers = [observed("both", (net.first.weight, net.second.weight), (net.first.bias, net.gain))]
    probe = StepProbe(layers, keep([net.first.weight, net.second.weight], net.parameters()))
    set_gradients(net, 3.0, 5.0, 4.0, 12.0)
    one_step(probe)
    values = probe.take()
    assert values.layers[0, GRAD].tolist() == pytest.approx([5.0])
    assert values.layers[0, BIAS].tolist() == pytest.approx([13.0])


def test_half_precision_and_large_weights_beside_small_ones() -> None:
    """Each in its own type; sums run in a wider one, over rows of moderate length."""
    half = nn.Parameter(torch.full((300, 30), 0.25, dtype=torch.bfloat16))
    large = nn.Parameter(torch.full((130, 100), 0.1))
    small = nn.Parameter(torch.full((3,), 2.0))
    for one in (half, large, small):
        one.grad = one.detach().clone()
    layers = [observed("half", (half,), (small,)), observed("large", (large,))]
    probe = StepProbe(layers, keep([half, large], [half, small, large]))
    probe.gradients(torch.tensor(1.0))
    with torch.no_grad():
        half.mul_(2)
    probe.updated()
    values = probe.take().layers[0]
    norms = [0.25 * math.sqrt(9000), float(torch.tensor(0.1)) * math.sqrt(13000)]
    assert values[GRAD].tolist() == pytest.approx(norms, rel=1e-6)
    assert values[WEIGHT].tolist() == pytest.approx(norms, rel=1e-6)
    assert values[UPDATE].tolist() == pytest.approx([norms[0], 0.0], rel=1e-6)
    assert values[BIAS, 0] == pytest.approx(math.sqrt(12), rel=1e-6)


# --- lines of the table ------------------------------------------------------------------------


def lines(layers: list[Observed], values: list[list[float]], *, updated: bool = True) -> list[str]:
    """The text for one step, number 7: of each layer its five figures."""
    norms = np.array(values).T
    return gradient_lines([LayerNorms(7, norms, updated)], layers).splitlines()


def test_nine_digits_bring_every_single_precision_number_back() -> None:
    net = Net()
    value = float(np.float32(1 / 3))
    line, _ = lines(net.layers(), [[value] * 5, [1.0] * 5])
    assert line == "7,1,first" + ",0.333333343" * 5
    for one in (16777217.0 / 3, 1.17549435e-38, 3.40282347e38, 0.1, 1e-30):
        single = np.float32(one)
        line, _ = lines(net.layers(), [[float(single)] * 5, [1.0] * 5])
        assert {np.float32(cell) for cell in line.split(",")[3:]} == {single}


def test_the_order_of_the_columns_is_that_of_the_header() -> None:
    """grad_norm, clipped_grad_norm, bias_grad_norm, weight_norm, update_norm."""
    found = lines(Net().layers(), [[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, math.nan, 9.0, 10.0]])
    assert found == ["7,1,first,1,2,3,4,5", "7,2,second,6,7,,9,10"]


def test_what_a_step_or_a_layer_does_not_have_is_empty() -> None:
    """No update, a frozen weight, a frozen bias; what is not finite is written."""
    net = Net()
    row = [[1.0, 2.0, 3.0, 4.0, math.nan], [math.inf, math.nan, math.nan, 4.0, math.nan]]
    found = lines(net.layers(), row, updated=False)
    assert found == ["7,1,first,1,2,3,4,", "7,2,second,inf,nan,,4,"]
    net.first.weight.requires_grad_(False)
    assert lines(net.layers(), row)[0] == "7,1,first,,,3,4,nan"
    net.first.requires_grad_(False)
    assert lines(net.layers(), row)[0] == "7,1,first,,,,4,nan"


def test_steps_with_and_without_update_follow_one_another() -> None:
    first, second = Net().layers()
    norms = np.ones((5, 2))
    steps = [LayerNorms(8, norms, True), LayerNorms(9, 2 * norms, False)]
    text = gradient_lines(steps, [first, second])
    assert text.splitlines() == [
        "8,1,first,1,1,1,1,1",
        "8,2,second,1,1,,1,1",
        "9,1,first,2,2,2,2,",
        "9,2,second,2,2,,2,",
    ]


@pytest.mark.parametrize(
    ("name", "written"),
    [("a,b", '"a,b"'), ("50%", "50%"), ('say "x"', '"say ""x"""'), ("%d", "%d")],
)
def test_names_of_any_kind(name: str, written: str) -> None:
    first, second = Net().layers()
    line, _ = lines([replace(first, name=name), second], [[1.0] * 5] * 2)
    assert line == f"7,1,{written},1,1,1,1,1"
