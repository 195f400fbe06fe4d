"""Families that are modules of anybody's making, from torchvision or of one's own, in a config."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradexp
from gradexp.config import Source, load_config, resolve
from gradexp.errors import ConfigError
from gradexp.nn import MODELS, WholeDesign
from gradexp.registry import Count
from gradexp.train import execute
from gradexp.train.learner import build_module, build_network
from tests.conftest import ROOT, StopAt


class Plain(nn.Module):
    """Functional activations, one module that is an activation, one norm."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        self.act = nn.ReLU()
        self.out = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.gelu(self.norm(self.first(images.flatten(1))))
        return self.out(self.act(self.second(hidden)))


@pytest.fixture
def plain() -> Iterator[None]:
    @MODELS.register("plain_for_test")
    def plain_for_test(*, width: Count = 7) -> WholeDesign:
        """A module of one's own."""
        return lambda shape, classes: Plain(shape[0] * shape[1] * shape[2], width, classes)

    yield
    MODELS.remove("plain_for_test")


def config(**model: Any) -> dict[str, Any]:
    return {
        "name": "whole",
        "data": {"dataset": "digits", "batch_size": 64},
        "model": {"family": "plain_for_test", **model},
        "train": {"steps": 6},
        "probe": {"examples": 64, "every": 3},
    }


@pytest.mark.usefixtures("plain")
def test_a_module_of_ones_own_is_a_run_like_any(tmp_path: Path) -> None:
    run = gradexp.run(config(), out=tmp_path)
    assert list(run.layers["layer"]) == ["first", "second", "out"]
    assert list(run.layers["activation"]) == ["gelu", "relu", "none"]
    assert list(run.layers["norm"]) == ["batch", "none", "none"]
    assert list(run.layers["units"]) == [7, 7, 10]
    assert {
        key: run.config["model"][key] for key in ("activation", "init", "norm", "residual")
    } == (dict.fromkeys(("activation", "init", "norm", "residual")))
    assert run.units["dead"].notna().groupby(run.units["layer"]).all().to_dict() == {
        "first": False,
        "out": False,
        "second": True,
    }
    assert len(run.steps) == 6
    assert run.status == "finished"
    again = gradexp.run(run.directory.config, out=tmp_path / "again")
    assert again.name == run.name
    for table in ("gradients", "signal", "units"):
        ours, theirs = (one.directory.table_path(table).read_bytes() for one in (run, again))
        assert ours == theirs


@pytest.mark.usefixtures("plain")
def test_an_interrupted_one_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    settings = resolve(Source(config()))
    with pytest.raises(KeyboardInterrupt):
        execute(settings, tmp_path / "parts", observer=StopAt(3))
    outcome = execute(settings, tmp_path / "parts")
    assert outcome.resumed_from is not None
    whole = execute(settings, tmp_path / "whole").run
    for table in ("gradients", "signal", "units", "layers"):
        ours, theirs = (one.table_path(table).read_bytes() for one in (outcome.run, whole))
        assert ours == theirs, table


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_a_frozen_layer_keeps_still_whatever_is_asked_of_weights(
    tmp_path: Path, optimizer: str
) -> None:
    def frozen(shape: tuple[int, ...], classes: int) -> nn.Module:
        module = Plain(shape[0] * shape[1] * shape[2], 7, classes)
        module.second.requires_grad_(False)
        return module

    MODELS.register("frozen_for_test")(lambda: frozen)
    decayed = {"steps": 6, "optimizer": optimizer, "weight_decay": 0.5, "l1": 0.1}
    run = gradexp.run(config(family="frozen_for_test") | {"train": decayed}, out=tmp_path)
    moved = run.gradients.groupby("layer")["update_norm"].max()
    assert moved["second"] == 0.0
    assert moved["first"] > 0.0
    assert moved["out"] > 0.0
    norms = run.gradients.groupby("layer")["weight_norm"].nunique()
    assert norms["second"] == 1
    assert run.gradients.query("layer == 'second'")["grad_norm"].isna().all()


@pytest.mark.usefixtures("plain")
def test_its_own_init_hangs_on_the_seed() -> None:
    first, again, other = (
        build_module(resolve(Source(config() | {"seed": s})))[0] for s in (0, 0, 1)
    )
    assert torch.equal(first.first.weight, again.first.weight)
    assert not torch.equal(first.first.weight, other.first.weight)


def build(**model: Any) -> tuple[nn.Module, Any]:
    return build_module(resolve(Source(config(**model))))


@pytest.mark.usefixtures("plain")
def test_parts_are_put_where_there_is_a_place() -> None:
    module, layers = build(activation={"name": "leaky_relu", "negative_slope": 0.2})
    # GELU is called as a function: nothing can be exchanged there.
    assert [layer.activation for layer in layers] == ["gelu", "leaky_relu", "none"]
    assert layers[1].facts.slope == 0.2
    module, layers = build(norm="none")
    assert not any(isinstance(part, nn.BatchNorm1d) for part in module.modules())
    assert [layer.norm for layer in layers] == ["none"] * 3
    _, layers = build(norm="layer")
    assert [layer.norm for layer in layers] == ["layer", "none", "none"]
    _, layers = build(init={"name": "normal", "std": 0.5, "bias_std": 0.25}, width=64)
    for layer in layers:
        assert float(layer.weights[0].detach().std()) == pytest.approx(0.5, rel=0.1)
    assert float(layers[1].biases[0].detach().std()) == pytest.approx(0.25, rel=0.3)
    own, _ = build()
    other, _ = build(init="normal")
    assert not torch.equal(own.second.weight, other.second.weight)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"residual": "identity"}, "residual has no effect in a net that is built as a whole"),
        ({"dropout": 0.1, "bias": False}, "dropout has no effect; bias has no effect in a net"),
        ({"activation": "prelu"}, "prelu has a parameter for each unit"),
        ({"family": "torchvision", "name": "resnet81"}, "Did you mean 'resnet"),
        ({"family": "torchvision", "name": "vgg11"}, "cannot take 1x8x8 images"),
        (
            {"family": "torchvision", "name": "squeezenet1_0", "norm": "layer"},
            "model.norm has no effect: SqueezeNet has no norm modules to exchange",
        ),
    ],
)
def test_what_has_no_place_is_refused(tmp_path: Path, model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gradexp.run(config(**model), out=tmp_path)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (nn.Linear(64, 10), "cannot take 1x8x8 images"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), r"logits \[n, 10\], returned \(2, 3\)"),
        ("a net", "must make a torch module, made str"),
    ],
)
def test_a_module_must_take_images_and_give_logits(tmp_path: Path, made: Any, message: str) -> None:
    MODELS.register("made_for_test")(lambda: lambda _shape, _classes: made)
    try:
        with pytest.raises(ConfigError, match=message):
            gradexp.run(config(family="made_for_test"), out=tmp_path)
    finally:
        MODELS.remove("made_for_test")


def test_null_parts_of_a_family_of_layers_are_the_usual_ones(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: {activation: null, init: null, norm: null}\n")
    (tmp_path / "b.yaml").write_text("")
    assert load_config(tmp_path / "a.yaml") == load_config(tmp_path / "b.yaml")
    build_network(load_config(tmp_path / "a.yaml"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_nets_are_built_for_the_data(channels: int, name: str) -> None:
    plan = MODELS["torchvision"].make(name=name)
    module = plan((channels, 32, 32), 7)
    assert module.eval()(torch.zeros(2, channels, 32, 32)).shape == (2, 7)
    first = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
    fan_out = first.out_channels * first.kernel_size[0] ** 2
    assert float(first.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_a_torchvision_net_is_trained_and_judged(tmp_path: Path) -> None:
    run = gradexp.run(
        {
            "data": {"dataset": "digits", "batch_size": 32, "train_examples": 64},
            "model": {"family": "torchvision", "name": "resnet18", "activation": "elu"},
            "train": {"steps": 1},
            "probe": {"examples": 16},
        },
        out=tmp_path,
    )
    assert len(run.layers) == 21
    assert set(run.layers["activation"]) == {"elu", "none"}
    assert run.layers["layer"].iloc[0] == "conv1"
    assert run.layers["kind"].value_counts().to_dict() == {"conv": 17, "pointwise": 3, "linear": 1}
    assert (run.gradients["grad_norm"] > 0).all()
    assert run.verdicts


def check_watch() -> Any:
    spec = importlib.util.spec_from_file_location("check_watch", ROOT / "scripts/check_watch.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        "healthy-relu-batch-norm",
        "vanishing-sigmoid-deep",
        "exploding-diverged",
        "healthy-mobilenet",
    ],
)
def test_a_plain_loop_under_watch_gives_the_tables_of_our_loop(tmp_path: Path, name: str) -> None:
    script = check_watch()
    config = load_config(ROOT / f"configs/suite/{name}.yaml", ["train.steps=30"])
    found, ours, theirs = script.compare(config, tmp_path)
    assert max(found.values()) < script.LIMIT, found
    assert ours == theirs
