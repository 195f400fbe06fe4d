"""Every registered part builds and trains on every family it applies to."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from gradexp.config import REGISTRIES, Config, load_config
from gradexp.errors import ConfigError
from gradexp.nn import ACTIVATIONS, INITS, NORMS, RESIDUALS, LayerSpec
from gradexp.nn.network import Network
from gradexp.registry import Registry
from gradexp.train.learner import build_network
from tests.nets import FAMILIES

PARTS = [
    *(("activation", name) for name in ACTIVATIONS.names()),
    *(("init", name) for name in INITS.names()),
    *(("norm", name) for name in NORMS.names()),
    *(("residual", name) for name in RESIDUALS.names()),
]


def config_of(tmp_path: Path, *overrides: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text("model: {width: 8, depth: 6}\n")
    return load_config(path, overrides)


def forward_backward(network: Network, shape: tuple[int, int, int]) -> torch.Tensor:
    torch.manual_seed(0)
    inputs = torch.rand(8, *shape)
    loss = F.cross_entropy(network(inputs), torch.arange(8))
    loss.backward()
    return loss


@pytest.mark.parametrize(("family", "part"), list(itertools.product(FAMILIES, PARTS)))
def test_every_part_on_every_family(tmp_path: Path, family: str, part: tuple[str, str]) -> None:
    config = config_of(tmp_path, f"model.family={family}", f"model.{part[0]}={part[1]}")
    network = build_network(config)
    assert torch.isfinite(forward_backward(network, (1, 8, 8)))
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("activation", ACTIVATIONS.names())
def test_facts_of_an_activation_agree_with_its_module(activation: str) -> None:
    facts = ACTIVATIONS[activation].factory()
    # Beyond 7 gelu's rounding errors are larger than its slope.
    points = torch.linspace(-7, 7, 14001, dtype=torch.float64).requires_grad_()
    module = facts.module(1).double()
    values = module(points.view(-1, 1)).flatten()
    (slope,) = torch.autograd.grad(values.sum(), points)
    flat = torch.zeros_like(slope, dtype=torch.bool)
    for low, high in facts.flat:
        flat |= (points >= low) & (points <= high)
    inner = ~flat & (points.abs() < 6)
    # Hardswish has a kink at 3 only; inside a flat interval the derivative is exactly 0.
    assert (slope[flat] == 0).all()
    turning = torch.sign(values.diff())[1:] * torch.sign(values.diff())[:-1] < 0
    turns = points[1:-1][turning].tolist()
    assert all(min(abs(turn - known) for known in facts.turns) < 2e-3 for turn in turns)
    assert len(turns) <= len(facts.turns)
    assert (slope[inner] != 0).float().mean() > 0.99


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize(
    ("layer", "fan_in", "fan_out"),
    [
        (LayerSpec("a", "linear", 300, 200), 300, 200),
        (LayerSpec("b", "conv", 30, 40), 270, 360),
        (LayerSpec("c", "depthwise", 4000, 4000), 9, 9),
        (LayerSpec("d", "pointwise", 200, 300), 200, 300),
    ],
)
def test_variance_of_inits(kind: str, layer: LayerSpec, fan_in: int, fan_out: int) -> None:
    """Glorot & Bengio 2010 and He et al. 2015, with groups counted in the fans."""
    from gradexp.nn.activations import relu
    from gradexp.nn.network import Layer, Parts

    assert (layer.fan_in, layer.fan_out) == (fan_in, fan_out)
    expected = {
        f"xavier_{kind}": 2 / (fan_in + fan_out),
        f"kaiming_{kind}": 2 / fan_in,
        f"lecun_{kind}": 1 / fan_in,
    }
    for name, variance in expected.items():
        init = INITS[name].factory()
        built = Layer(layer, Parts(relu(), init, None, None))
        built.initialize(init, torch.Generator().manual_seed(1))
        assert built.weight.var().item() == pytest.approx(variance, rel=0.05)
        assert built.bias is not None
        assert (built.bias == 0).all()


def test_registering_a_name_twice_is_refused() -> None:
    registry: Registry[object] = Registry("thing", "things")  # type: ignore[type-var]
    registry.register("one", aliases=("uno",))(lambda: 1)
    with pytest.raises(ConfigError, match="'uno' is registered already"):
        registry.register("uno")(lambda: 2)
    with pytest.raises(ConfigError, match="Did you mean 'one'"):
        registry["on"]


@pytest.mark.parametrize("kind", list(REGISTRIES))
def test_every_entry_describes_itself(kind: str) -> None:
    for entry in REGISTRIES[kind]:
        assert entry.help.endswith("."), entry.name
        for option in entry.options:
            assert option.default is not None or "None" in str(option.type), option.name


def test_shortcut_adds_the_input(tmp_path: Path) -> None:
    """With a zero branch, a residual block is the identity."""
    config = config_of(tmp_path, "model.residual.name=identity", "model.residual.scale=0.5")
    network = build_network(config)
    block = network.blocks[1]
    inputs = torch.randn(4, 8)
    branch = block.layers(inputs)
    torch.testing.assert_close(block(inputs), inputs + 0.5 * branch)
