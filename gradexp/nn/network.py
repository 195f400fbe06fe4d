"""From a blueprint to a torch module: one `Layer` class from which every model is built."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradexp.nn.activations import Activation
from gradexp.nn.blueprint import BlockSpec, Blueprint, LayerSpec
from gradexp.nn.checks import check_activation
from gradexp.nn.inits import Fans, Init
from gradexp.nn.norms import Norm
from gradexp.nn.observed import NONE, Observed
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
    activation_name: str = "own"
    norm_name: str = NONE


class Layer(nn.Module):
    """A linear map with its norm, activation and dropout, in the order of its spec's stages.

    Pre and post are what the activation is given and what it returns. A stage that the spec does
    not name, or that nothing was chosen for, is an identity and is not called. Where a shortcut is
    joined before the activation, the stages `before` the join are its `branch`, and those `after`
    it `finish`.
    """

    def __init__(self, spec: LayerSpec, parts: Parts, *, joined_early: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.facts = parts.activation if spec.hidden else None
        self._parts = parts
        norm = parts.norm if "norm" in spec.stages else None
        removed = norm is not None and norm.removes_bias and spec.norm_follows_map
        self.map = _linear_map(spec, parts.bias and not removed)
        images = spec.kind != "linear"
        self.norm = norm.module(spec.width_at("norm"), images) if norm else nn.Identity()
        self.activation = (
            parts.activation.module(spec.width_at("activation")) if spec.hidden else nn.Identity()
        )
        dropped = parts.dropout if "dropout" in spec.stages else 0.0
        self.dropout = nn.Dropout(dropped) if dropped else nn.Identity()
        stages = [getattr(self, stage) for stage in spec.stages]
        split = spec.stages.index("activation") if joined_early else len(stages)
        self.before, self.after = (
            tuple(one for one in part if not isinstance(one, nn.Identity))
            for part in (stages[:split], stages[split:])
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, inputs, ...] to [n, outputs, ...]."""
        return self.finish(self.branch(inputs))

    def branch(self, inputs: Tensor) -> Tensor:
        """The stages before the join of a shortcut; all of them where there is none."""
        for stage in self.before:
            inputs = stage(inputs)
        return inputs

    def finish(self, inputs: Tensor) -> Tensor:
        """The stages after the join of a shortcut."""
        for stage in self.after:
            inputs = stage(inputs)
        return inputs

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """The modules that are called, in order."""
        return (*self.before, *self.after)

    @property
    def weight(self) -> Tensor:
        """The weight of the linear map."""
        return self.map.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the linear map, if it has one."""
        return self.map.bias

    def observed(self) -> Observed:
        """What probes need to know of it."""
        spec, parts = self.spec, self._parts
        own = {id(self.weight), id(self.bias)}
        return Observed(
            name=spec.name,
            kind=spec.kind,
            fan_in=spec.fan_in,
            fan_out=spec.fan_out,
            units=spec.outputs,
            weights=(self.weight,),
            biases=() if self.bias is None else (self.bias,),
            others=tuple(one for one in self.parameters() if id(one) not in own),
            activation=parts.activation_name if spec.hidden else NONE,
            norm=parts.norm_name if "norm" in spec.stages else NONE,
            facts=self.facts,
            function=self.activation if spec.hidden else None,
            activations=(self.activation,) if spec.hidden else (),
            passing=(self.norm,),
        )

    def initialize(self, init: Init, generator: torch.Generator) -> None:
        """Draw weight and bias from the generator, on the CPU, so that all devices begin alike."""
        slope = self.facts.slope if self.facts else 1.0
        fans = Fans(self.spec.fan_in, self.spec.fan_out, slope)
        with torch.no_grad():
            init.weight(self.weight, fans, generator)
            if self.bias is not None:
                init.bias(self.bias, fans, generator)


def _linear_map(spec: LayerSpec, bias: bool) -> nn.Linear | nn.Conv2d:
    if spec.kind == "linear":
        return nn.Linear(spec.inputs, spec.outputs, bias=bias)
    return nn.Conv2d(
        spec.inputs,
        spec.outputs,
        spec.kernel,
        spec.stride,
        padding=spec.kernel // 2,
        groups=spec.groups,
        bias=bias,
    )


class Block(nn.Module):
    """Layers in a row, with a shortcut around them or not, then perhaps a max-pool.

    The shortcut carries the input as it is, or through a layer of its own where shapes change.
    """

    def __init__(self, spec: BlockSpec, parts: Parts) -> None:
        super().__init__()
        residual = parts.residual if spec.shortcut else None
        early = residual is not None and residual.after_sum
        *first, last = spec.layers
        self.layers = nn.Sequential(
            *(Layer(layer, parts) for layer in first),
            Layer(last, parts, joined_early=early),
        )
        self.projection = Layer(spec.projection, parts) if spec.projection else None
        self.join = residual.join() if residual else None
        self.pool = nn.MaxPool2d(2) if spec.pool else None

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, inputs, ...] to [n, outputs, ...]."""
        *first, last = self.layers
        out = inputs
        for layer in first:
            out = layer(out)
        assert isinstance(last, Layer)  # noqa: S101  tells the type checker what Sequential holds
        out = last.branch(out)
        if self.join is not None:
            around = inputs if self.projection is None else self.projection(inputs)
            out = self.join(around, out)
        out = last.finish(out)
        pooled: Tensor = out if self.pool is None else self.pool(out)
        return pooled


class Network(nn.Module):
    """Blocks, a global average over positions, and the readout: logits [n, classes]."""

    def __init__(self, blueprint: Blueprint, parts: Parts) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(block, parts) for block in blueprint.blocks))
        self.readout = Layer(blueprint.readout, parts)
        self.spatial = blueprint.spatial

    def forward(self, inputs: Tensor) -> Tensor:
        """Images [n, C, H, W] to logits [n, classes]."""
        out = self.blocks(inputs if self.spatial else inputs.flatten(1))
        if self.spatial:
            out = out.mean((2, 3))
        logits: Tensor = self.readout(out)
        return logits

    def layers(self) -> list[Layer]:
        """All layers in forward order; position + 1 is `layer_index`."""
        return [module for module in self.modules() if isinstance(module, Layer)]

    def observed(self) -> list[Observed]:
        """All layers, as probes see them."""
        return [layer.observed() for layer in self.layers()]


def build(blueprint: Blueprint, parts: Parts, generator: torch.Generator) -> Network:
    """A network on the CPU, its layers initialized in forward order from one generator.

    Raises:
        ConfigError: the activation is not what its entry says.
    """
    check_activation(parts.activation_name, parts.activation)
    network = Network(blueprint, parts)
    for layer in network.layers():
        layer.initialize(parts.init, generator)
    return network
