"""From a blueprint to a torch module: one `Layer` class from which every model is built."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradexp.nn.activations import Activation
from gradexp.nn.blueprint import BlockSpec, Blueprint, LayerSpec
from gradexp.nn.inits import Fans, Init
from gradexp.nn.norms import Norm
from gradexp.nn.residuals import Residual


@dataclass(frozen=True)
class Parts:
    """The choices that apply to every hidden layer of a model."""

    activation: Activation
    init: Init
    norm: Norm | None
    residual: Residual | None
    dropout: float = 0.0
    bias: bool = True


class Layer(nn.Module):
    """Linear map -> norm -> activation -> dropout; pre and post are what `activation` sees.

    A layer that is not hidden (the readout) has an identity for activation: pre = post. `stages`
    are the modules that do something, and the activation always, for its hooks. Small nets feel
    every call: nets call stages, layers and blocks only where they are more than their stages.
    """

    def __init__(self, spec: LayerSpec, parts: Parts) -> None:
        super().__init__()
        self.spec = spec
        norm = parts.norm if spec.hidden else None
        self.map = _linear_map(spec, parts.bias and not (norm and norm.removes_bias))
        self.norm = norm.module(spec.outputs, spec.kind != "linear") if norm else nn.Identity()
        self.facts = parts.activation if spec.hidden else Activation(lambda _units: nn.Identity())
        self.activation = self.facts.module(spec.outputs)
        self.dropout = nn.Dropout(parts.dropout) if parts.dropout and spec.hidden else nn.Identity()
        around = (self.map, self.norm, self.activation, self.dropout)
        self.stages = tuple(
            one for one in around if one is self.activation or not isinstance(one, nn.Identity)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, inputs, ...] to [n, outputs, ...]."""
        return _through(self.stages, inputs)

    @property
    def weight(self) -> Tensor:
        """The weight of the linear map."""
        return self.map.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the linear map, if it has one."""
        return self.map.bias

    def initialize(self, init: Init, generator: torch.Generator) -> None:
        """Draw weight and bias from the generator, on the CPU, so that all devices begin alike."""
        slope = self.facts.slope if self.spec.hidden else 1.0
        fans = Fans(self.spec.fan_in, self.spec.fan_out, slope)
        with torch.no_grad():
            init.weight(self.weight, fans, generator)
            if self.bias is not None:
                init.bias(self.bias, fans, generator)


class Linear(nn.Linear):
    """torch's own, sparing two detours by which it looks for its weight and bias at every call."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, inputs] to [n, outputs]."""
        own: dict[str, Any] = self._parameters
        return F.linear(inputs, own["weight"], own["bias"])


def _linear_map(spec: LayerSpec, bias: bool) -> nn.Linear | nn.Conv2d:
    if spec.kind == "linear":
        return Linear(spec.inputs, spec.outputs, bias=bias)
    return nn.Conv2d(
        spec.inputs,
        spec.outputs,
        spec.kernel,
        spec.stride,
        padding=spec.kernel // 2,
        groups=spec.groups,
        bias=bias,
    )


def _stages_of(parts: Iterable[Any]) -> tuple[nn.Module, ...]:
    """What layers or blocks in a row come down to."""
    return tuple(stage for part in parts for stage in part.stages)


def _through(stages: tuple[nn.Module, ...], values: Tensor) -> Tensor:
    """One stage after the other; torch's own call of a module does much that only hooks need."""
    for stage in stages:
        values = stage(values) if stage._forward_hooks else stage.forward(values)
    return values


class Block(nn.Module):
    """Layers in a row; with a shortcut x + scale * F(x), then perhaps a max-pool.

    `stages` are what a net has to call: the block itself where it has a shortcut.
    """

    def __init__(self, spec: BlockSpec, parts: Parts) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Layer(layer, parts) for layer in spec.layers))
        self.scale = parts.residual.scale if spec.shortcut and parts.residual else None
        self.pool = nn.MaxPool2d(2) if spec.pool else nn.Identity()
        self._branch = _stages_of(self.layers)
        pool = (self.pool,) if spec.pool else ()
        self.stages = (*self._branch, *pool) if self.scale is None else (self,)

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, inputs, ...] to [n, outputs, ...]."""
        out = _through(self._branch, inputs)
        if self.scale is not None:
            out = torch.add(inputs, out, alpha=self.scale)
        pooled: Tensor = self.pool(out)
        return pooled


class Network(nn.Module):
    """Blocks, a global average over positions, and the readout: logits [n, classes]."""

    def __init__(self, blueprint: Blueprint, parts: Parts) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(block, parts) for block in blueprint.blocks))
        self.readout = Layer(blueprint.readout, parts)
        self.spatial = blueprint.spatial
        self._stages = _stages_of(self.blocks)
        self._within = tuple(self.modules())

    def train(self, mode: bool = True) -> Self:
        """Switch all modules to training or evaluation, without torch's slow walk to them."""
        for module in self._within:
            object.__setattr__(module, "training", mode)
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Images [n, C, H, W] to logits [n, classes]."""
        out = inputs if self.spatial else inputs.flatten(1)
        out = _through(self._stages, out)
        if self.spatial:
            out = out.mean((2, 3))
        return self.readout.forward(out)

    def layers(self) -> list[Layer]:
        """All layers in forward order; position + 1 is `layer_index`."""
        return [module for module in self.modules() if isinstance(module, Layer)]


def build(blueprint: Blueprint, parts: Parts, generator: torch.Generator) -> Network:
    """A network on the CPU, its layers initialized in forward order from one generator."""
    network = Network(blueprint, parts)
    for layer in network.layers():
        layer.initialize(parts.init, generator)
    return network
