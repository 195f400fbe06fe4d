"""Small nets and runs made from config keys, taken apart by torch's own module types alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradexp.config import Config, parse_yaml, resolve, with_overrides
from gradexp.nn import MODELS, is_whole
from gradexp.records import RunDir
from gradexp.train import execute
from gradexp.train.learner import build_network

BASE = """
name: net
device: cpu
data: {dataset: synthetic, classes: 3, channels: 2, size: 6, examples: 40, batch_size: 8}
train: {steps: 4}
probe: {every: 4, examples: 12}
"""
FAMILIES = [entry.name for entry in MODELS if not is_whole(entry.make())]
"""The families of layers; nets that are built as a whole have tests of their own."""
Map = nn.Linear | nn.Conv2d
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm
Module = TypeVar("Module", bound=nn.Module)


def config_of(*overrides: str) -> Config:
    """The config of a small net on three classes of images [2, 6, 6], with settings changed."""
    return resolve(with_overrides(parse_yaml(BASE, "net.yaml"), overrides))


def run_of(folder: Path, *overrides: str) -> RunDir:
    """Train such a net."""
    return execute(config_of(*overrides), folder).run


def network_of(*overrides: str) -> nn.Module:
    """Such a net, initialized."""
    return build_network(config_of(*overrides))


def maps_of(network: nn.Module) -> list[Map]:
    """The weight-bearing maps from input to readout."""
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def norms_of(network: nn.Module) -> list[nn.Module]:
    """The normalizations from input to readout."""
    return [module for module in network.modules() if isinstance(module, Norm)]


def shake(network: nn.Module) -> None:
    """Give every parameter and running statistic a value of its own, none of them at a default."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=generator), alpha=0.3)
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape, generator=generator))


class Recipe:
    """What a net computes, written as words, and computed with the weights of a real one.

    Small letters are layers: `l` linear, `c` 3x3 convolution, `d` depthwise 3x3, `p` pointwise;
    `D` is a depthwise layer of stride 2. `v` is a 2x2 max-pool. Layers in brackets have a shortcut
    around them. A global average over positions (of images) and the readout follow.

    Attributes:
        sizes: side of the image after each word, once `follow` has been called.
    """

    def __init__(
        self,
        words: str,
        *,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        norm: Callable[[nn.Module, Tensor], Tensor] | None = None,
        scale: float = 1.0,
    ) -> None:
        self._words = words.split()
        self._activation = activation
        self._norm = norm
        self._scale = scale
        self.sizes: list[int] = []

    def follow(self, network: nn.Module, images: Tensor) -> Tensor:
        """Logits of images [n, C, H, W] by the weights of the network, one after the other."""
        maps, norms = iter(maps_of(network)), iter(norms_of(network))
        x = images if images.dim() > 2 and "l" not in self._words[0] else images.flatten(1)
        for word in self._words:
            x = F.max_pool2d(x, 2) if word == "v" else self._block(word, x, maps, norms)
            self.sizes.append(x.shape[-1])
        x = x.mean((2, 3)) if x.dim() > 2 else x
        readout = next(maps)
        assert next(maps, None) is None
        assert next(norms, None) is None
        return F.linear(x, readout.weight, readout.bias)

    def _block(
        self, word: str, x: Tensor, maps: Iterator[Map], norms: Iterator[nn.Module]
    ) -> Tensor:
        branch = x
        for sign in word.strip("()"):
            branch = apply_map(sign, branch, next(maps))
            branch = self._norm(next(norms), branch) if self._norm else branch
            branch = self._activation(branch)
        return x + self._scale * branch if word.startswith("(") else branch


def apply_map(sign: str, x: Tensor, one: Map) -> Tensor:
    """A layer's map with a module's numbers; stride, padding and groups are those of the sign."""
    if sign == "l":
        return F.linear(x, one.weight, one.bias)
    side = 1 if sign == "p" else 3
    assert one.weight.shape[2:] == (side, side)
    return F.conv2d(
        x,
        one.weight,
        one.bias,
        stride=2 if sign == "D" else 1,
        padding=side // 2,
        groups=x.shape[1] if sign in "dD" else 1,
    )
