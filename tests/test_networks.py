"""What a net computes: its own weights, run through a recipe that was written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradexp.errors import ConfigError
from gradexp.nn import BlockSpec, LayerSpec
from gradexp.nn.blueprint import grouped
from gradexp.nn.network import Network
from gradexp.optim.parameters import FlatParameters, keep
from gradexp.optim.rows import Rows
from tests.nets import Recipe, config_of, maps_of, network_of, norms_of, shake

MLP = "model={family: mlp, width: 5, activation: tanh}"
CNN = "model={family: cnn, width: 3, stages: 2, activation: tanh}"
MOBILE = "model={family: mobilenet_v1, width: 2, stages: 2, activation: tanh}"
SHORTCUT = "model.residual=identity"


def span(layers: int, scale: float = 1.0) -> str:
    return f"model.residual={{name: identity, span: {layers}, scale: {scale}}}"


def images(size: int = 6, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, 2, size, size, generator=generator, dtype=torch.float64)


# The words of `Recipe`, and the side of the image after each of them.
CASES: dict[str, tuple[tuple[str, ...], Recipe, list[int] | None]] = {
    "mlp": ((MLP,), Recipe("l l l l l"), None),
    "mlp, by default": ((MLP, "model.depth=6", SHORTCUT), Recipe("l (ll) (ll) (l)"), None),
    "mlp, span 1": ((MLP, "model.depth=4", span(1)), Recipe("l (l) (l) (l)"), None),
    "mlp, span 3": ((MLP, "model.depth=7", span(3)), Recipe("l (lll) (lll)"), None),
    "mlp, span of all": ((MLP, "model.depth=3", span(9)), Recipe("l (ll)"), None),
    "mlp, scale": ((MLP, span(2, 0.25)), Recipe("l (ll) (ll)", scale=0.25), None),
    "mlp, as wide as its input": (
        (MLP, "model.width=72", "model.depth=3", span(1)),
        Recipe("l (l) (l)"),
        None,
    ),
    "cnn": ((CNN, "model.depth=4"), Recipe("c c v c c"), [6, 6, 3, 3, 3]),
    "cnn, odd image": (
        (CNN, "model.depth=5", "model.stages=3", "data.size=7"),
        Recipe("c c v c c v c"),
        [7, 7, 3, 3, 3, 1, 1],
    ),
    "cnn, one stage": ((CNN, "model.depth=2", "model.stages=1"), Recipe("c c"), [6, 6]),
    "cnn, by default": (
        (CNN, "model.depth=8", SHORTCUT),
        Recipe("c (cc) (c) v c (cc) (c)"),
        [6, 6, 6, 3, 3, 3, 3],
    ),
    "cnn, span 1, scale": (
        (CNN, "model.depth=3", span(1, 3.0)),
        Recipe("c (c) v c", scale=3.0),
        [6, 6, 3, 3],
    ),
    "mobilenet": ((MOBILE, "model.depth=3"), Recipe("c dp dp Dp"), [6, 6, 6, 3]),
    "mobilenet, odd image": (
        (MOBILE, "model.depth=3", "model.stages=3", "data.size=7"),
        Recipe("c dp Dp Dp"),
        [7, 7, 4, 2],
    ),
    "mobilenet, shortcuts": (
        (MOBILE, "model.depth=5", SHORTCUT),
        Recipe("c dp (dp) (dp) Dp (dp)"),
        [6, 6, 6, 6, 3, 3],
    ),
    "mobilenet, span 1, scale": (
        (MOBILE, "model.depth=4", span(1, 0.5)),
        Recipe("c dp (dp) Dp (dp)", scale=0.5),
        [6, 6, 6, 3, 3],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits(case: str) -> None:
    overrides, recipe, sizes = CASES[case]
    config = config_of(*overrides)
    network = network_of(*overrides).double()
    shake(network)
    inputs = images(config.data.make().shape[-1])
    expected = recipe.follow(network, inputs)
    assert expected.shape == (4, 3)
    assert sizes is None or recipe.sizes == sizes
    torch.testing.assert_close(network(inputs), expected)


@pytest.mark.parametrize("family", [MLP, CNN, MOBILE])
def test_without_biases(family: str) -> None:
    network = network_of(family, "model.bias=false", "model.depth=4")
    assert [one.bias for one in maps_of(network)] == [None] * len(maps_of(network))
    zero = torch.zeros(1, 2, 6, 6)
    assert not network(zero).any()


# --- norms -----------------------------------------------------------------------------------


def batch_norm(eps: float) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda norm, x: normalized(norm, x, (0, *range(2, x.dim())), eps)


def layer_norm(eps: float) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda norm, x: normalized(norm, x, tuple(range(1, x.dim())), eps)


def normalized(norm: nn.Module, x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Mean 0 and variance 1 over the axes, then each unit's own scale and shift."""
    mean = x.mean(axes, keepdim=True)
    variance = ((x - mean) ** 2).mean(axes, keepdim=True)
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale, shift = (one.view(shape) for one in norm.parameters())
    return (x - mean) / torch.sqrt(variance + eps) * scale + shift


NORMS = {
    "batch": batch_norm(1e-5),
    "{name: batch, eps: 0.5}": batch_norm(0.5),
    "layer": layer_norm(1e-5),
    "{name: layer, eps: 0.5}": layer_norm(0.5),
}
WORDS = {MLP: "l (ll) (l)", CNN: "c (c) v c (c)", MOBILE: "c dp (dp) Dp (dp)"}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("family", WORDS)
def test_norms_stand_between_map_and_activation(family: str, norm: str) -> None:
    network = network_of(family, "model.depth=4", SHORTCUT, f"model.norm={norm}").double()
    shake(network)
    # Hardly any variance, so that an eps of 1e-5 counts.
    inputs = 0.5 + 0.01 * images()
    expected = Recipe(WORDS[family], norm=NORMS[norm]).follow(network, inputs)
    torch.testing.assert_close(network(inputs), expected)


@pytest.mark.parametrize("family", WORDS)
@pytest.mark.parametrize(("norm", "hidden"), [("none", True), ("batch", False), ("layer", True)])
def test_a_bias_goes_where_a_norm_takes_the_mean_away(family: str, norm: str, hidden: bool) -> None:
    network = network_of(family, "model.depth=4", f"model.norm={norm}")
    *inner, readout = [one.bias is not None for one in maps_of(network)]
    assert inner == [hidden] * len(inner)
    assert readout
    count = 0 if norm == "none" else len(inner)
    assert len(norms_of(network)) == count


@pytest.mark.parametrize(
    ("norm", "momentum"), [("batch", 0.1), ("{name: batch, momentum: 0.6}", 0.6)]
)
def test_running_statistics(norm: str, momentum: float) -> None:
    """A share `momentum` of each batch's mean and variance; evaluation looks at these alone."""
    network = network_of(MLP, "model.depth=1", f"model.norm={norm}").double()
    shake(network)
    (one,) = norms_of(network)
    assert isinstance(one, nn.BatchNorm1d)
    mean, variance = one.running_mean, one.running_var
    assert mean is not None
    assert variance is not None
    before = mean.clone(), variance.clone()
    inputs = images()
    pre = F.linear(inputs.flatten(1), maps_of(network)[0].weight)
    network(inputs)
    for now, then, seen in zip((mean, variance), before, (pre.mean(0), pre.var(0)), strict=True):
        torch.testing.assert_close(now, (1 - momentum) * then + momentum * seen)
    network.eval()
    expected = (pre - mean) / torch.sqrt(variance + 1e-5) * one.weight + one.bias
    readout = maps_of(network)[-1]
    torch.testing.assert_close(
        network(inputs), F.linear(expected.tanh(), readout.weight, readout.bias)
    )


@pytest.mark.parametrize("family", WORDS)
def test_training_and_evaluation_reach_every_module(family: str) -> None:
    network = network_of(family, "model.depth=4", "model.norm=batch", "model.dropout=0.5")
    for call, training in ((network.eval, False), (network.train, True)):
        assert call() is network
        assert {module.training for module in network.modules()} == {training}
    network.train(False)
    assert {module.training for module in network.modules()} == {False}


BATCH = "model.norm=batch"


@pytest.mark.parametrize("key", ["data.batch_size", "data.train_examples", "probe.examples"])
def test_batch_norm_needs_two_examples(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.norm: batch needs {key} of at least 2"):
        config_of(BATCH, f"{key}=1")
    config_of(BATCH, f"{key}=2")
    config_of("model.norm=layer", f"{key}=1")
    config_of("model.norm=none", f"{key}=1")


@pytest.mark.parametrize(
    "setting",
    [
        "norm={name: batch, eps: 0}",
        "norm={name: batch, momentum: 1.5}",
        "norm={name: layer, eps: -1}",
        "residual={name: identity, span: 0}",
        "residual={name: identity, scale: 0}",
        "dropout=1.0",
        "dropout=-0.1",
        "depth=0",
        "width=0",
    ],
)
def test_options_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{setting.partition('=')[0]}"):
        config_of(f"model.{setting}")


# --- dropout ---------------------------------------------------------------------------------


def seen_through_dropout(rate: float, family: str = "mlp") -> tuple[nn.Module, Tensor]:
    """A net whose logits are its hidden units: all of them 1 before dropout, 1000 of them."""
    stages = "" if family == "mlp" else ", stages: 1"
    network = network_of(
        "data.classes=1000",
        f"model={{family: {family}, depth: 1, width: 1000, activation: identity{stages}}}",
        f"model.dropout={rate}",
    )
    hidden, readout = maps_of(network)
    with torch.no_grad():
        hidden.weight.zero_()
        readout.weight.copy_(torch.eye(1000))
        for module, value in ((hidden, 1.0), (readout, 0.0)):
            assert module.bias is not None
            module.bias.fill_(value)
    torch.manual_seed(0)
    return network, network(torch.zeros(10, 2, 6, 6)).detach()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_dropout_takes_its_share_and_scales_the_rest(rate: float) -> None:
    """Behind each hidden layer, and not behind the readout, which would take its share again."""
    network, logits = seen_through_dropout(rate)
    taken = logits == 0
    assert float(taken.float().mean()) == pytest.approx(
        rate, abs=5 * math.sqrt(rate * (1 - rate) / logits.numel())
    )
    assert logits[~taken].tolist() == pytest.approx([1 / (1 - rate)] * int((~taken).sum()))
    assert torch.equal(network.eval()(torch.zeros(2, 2, 6, 6)), torch.ones(2, 1000))


def test_no_dropout_by_default() -> None:
    _, logits = seen_through_dropout(0.0)
    assert torch.equal(logits, torch.ones(10, 1000))
    assert config_of().model.dropout == 0.0


def test_dropout_of_convolutions_takes_positions() -> None:
    """A mean over 36 positions of which each had its own chance."""
    _, logits = seen_through_dropout(0.5, "cnn")
    assert 0.5 / math.sqrt(36) * 2 == pytest.approx(float(logits.std()), rel=0.1)
    assert float(logits.mean()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("family", WORDS)
def test_every_hidden_layer_has_its_dropout(family: str, rate: float) -> None:
    network = network_of(family, "model.depth=4", f"model.dropout={rate}")
    rates = [one.p for one in network.modules() if isinstance(one, nn.Dropout)]
    assert rates == [rate] * (len(maps_of(network)) - 1 if rate else 0)


# --- what cannot be built --------------------------------------------------------------------


@pytest.mark.parametrize("family", ["cnn", "mobilenet_v1"])
@pytest.mark.parametrize(
    ("sizes", "size", "message"),
    [
        ("depth: 2, stages: 3", 8, "depth 2 is less than the 3 stages it is divided over"),
        ("depth: 3, stages: 3", 4, None),
        ("depth: 3, stages: 3", 3, "3 stages halve a 3 pixel image below one pixel"),
        ("depth: 4, stages: 4", 8, None),
        ("depth: 4, stages: 4", 7, "4 stages halve a 7 pixel image below one pixel"),
        ("depth: 1, stages: 1", 1, None),
    ],
)
def test_stages_are_limited_by_depth_and_image(
    family: str, sizes: str, size: int, message: str | None
) -> None:
    overrides = (f"data.size={size}", f"model={{family: {family}, width: 2, {sizes}}}")
    if message is None:
        logits = network_of(*overrides)(torch.rand(2, 2, size, size))
        assert logits.shape == (2, 3)
    else:
        with pytest.raises(ConfigError, match=f"model: {message}"):
            config_of(*overrides)


@pytest.mark.parametrize("family", ["cnn", "mobilenet_v1"])
def test_the_shorter_side_limits_the_stages(family: str) -> None:
    plan = network_plan(family, "depth: 3, stages: 3")
    for shape in ((1, 16, 3), (1, 3, 16)):
        with pytest.raises(ConfigError, match="3 stages halve a 3 pixel image"):
            plan(shape, 10, 0)
    assert plan((1, 16, 4), 10, 0).readout.outputs == 10


def network_plan(family: str, sizes: str) -> Callable[..., object]:
    made: Callable[..., object] = config_of(f"model={{family: {family}, {sizes}}}").model.make()
    return made


@pytest.mark.parametrize(
    ("overrides", "fits"),
    [
        ((MLP, "model.depth=1"), False),
        ((MLP, "model.depth=2"), True),
        ((CNN, "model.depth=2"), False),
        ((CNN, "model.depth=3"), True),
        ((MOBILE, "model.depth=2"), False),
        ((MOBILE, "model.depth=3"), True),
    ],
)
def test_a_shortcut_that_fits_nowhere_is_refused(overrides: tuple[str, ...], fits: bool) -> None:
    if fits:
        config_of(*overrides, SHORTCUT)
    else:
        with pytest.raises(ConfigError, match="residual 'identity' has no effect: no layers"):
            config_of(*overrides, SHORTCUT)
    config_of(*overrides)


def test_layers_that_change_the_shape_stand_alone() -> None:
    def layer(inputs: int, outputs: int, stride: int = 1) -> LayerSpec:
        return LayerSpec("one", "conv", inputs, outputs, stride)

    same, wider, halving = layer(4, 4), layer(4, 8), layer(4, 4, stride=2)
    layers = [same, same, same, wider, same, halving, same]
    shape = [(len(block.layers), block.shortcut) for block in grouped(layers, 2)]
    assert shape == [(2, True), (1, True), (1, False), (1, True), (1, False), (1, True)]
    assert grouped(layers, 0) == [BlockSpec((one,)) for one in layers]


# --- parameters in one piece of memory -------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "length"),
    [
        ([4096], 4096),
        ([2048], 2048),
        ([3277], 4096),  # 819 wasted, of a quarter's 819.25
        ([3276], 512),  # 820 of 819, also in rows of 2048 and of 1024
        ([4096, 3072, 3072, 3072, 3072], 4096),  # exactly a quarter
        ([4096, 100], 1024),
        ([120, 120], 128),
        ([100], 64),
        ([10], 64),  # the shortest, whatever it wastes
    ],
)
def test_rows_are_as_long_as_little_waste_allows(sizes: list[int], length: int) -> None:
    assert Rows(sizes).length == length


def test_each_tensor_fills_rows_of_its_own() -> None:
    rows = Rows([130, 64, 1])
    assert rows.length == 64
    assert rows.first.tolist() == [0, 3, 4, 5]
    matrix = torch.zeros(5, 64)
    for index, shape in enumerate([(13, 10), (64,), (1, 1)]):
        rows.place(matrix, index, shape).fill_(index + 1)
    assert matrix.sum(1).tolist() == [64, 64, 2, 128, 3]


@pytest.mark.parametrize("family", WORDS)
@pytest.mark.parametrize("apart", [False, True])
def test_a_net_works_with_the_memory_that_is_updated(family: str, apart: bool) -> None:
    """Parameters keep their values; what an optimizer does to the whole, it does to each."""
    network = network_of(family, "model.depth=4", "model.norm=batch", "model.activation=prelu")
    assert isinstance(network, Network)
    inputs = images().float()
    logits = network(inputs).detach()
    before = {name: one.detach().clone() for name, one in network.named_parameters()}
    flat = keep([one.weight for one in maps_of(network)], network.parameters())
    assert isinstance(flat, FlatParameters)
    assert all(torch.equal(one, before[name]) for name, one in network.named_parameters())
    torch.testing.assert_close(network(inputs).detach(), logits)
    F.cross_entropy(network(inputs), torch.tensor([0, 1, 2, 0])).backward()
    gradients = {name: gradient(one).clone() for name, one in network.named_parameters()}
    groups = flat.groups(0.1 if apart else 0.0, elementwise=True)
    assert [len(group["params"]) for group in groups] == [1] * (1 + int(apart))
    assert [group["weight_decay"] for group in groups] == ([0.1, 0.0] if apart else [0.0])
    wholes = [group["params"][0] for group in groups]
    assert not any(whole.requires_grad for whole in wholes)
    with torch.no_grad():
        for index, whole in enumerate(wholes):
            whole.sub_(gradient(whole), alpha=1.0 + index)
    own = {id(one.weight) for one in maps_of(network)}
    for name, one in network.named_parameters():
        rate = 2.0 if apart and id(one) not in own else 1.0
        torch.testing.assert_close(one.detach(), before[name] - rate * gradients[name])
    flat.clear()
    assert not any(gradient(one).any() for one in network.parameters())


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
