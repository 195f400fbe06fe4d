"""What a model is before it has weights: layers with names and shapes, grouped into blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gradexp.errors import ConfigError

Kind = Literal["linear", "conv", "depthwise", "pointwise"]
Stage = Literal["map", "norm", "activation", "dropout"]
HIDDEN: tuple[Stage, ...] = ("map", "norm", "activation", "dropout")
READOUT: tuple[Stage, ...] = ("map",)
KERNEL_SIZE: dict[Kind, int] = {"linear": 1, "conv": 3, "depthwise": 3, "pointwise": 1}


@dataclass(frozen=True)
class LayerSpec:
    """One weight-bearing map, and in which order the model's norm, activation and dropout join it.

    Convolutions are padded so that stride 1 keeps the size of the image.
    """

    name: str
    kind: Kind
    inputs: int
    outputs: int
    stride: int = 1
    stages: tuple[Stage, ...] = HIDDEN

    @property
    def hidden(self) -> bool:
        """Whether it has the model's activation."""
        return "activation" in self.stages

    @property
    def norm_follows_map(self) -> bool:
        """Whether a norm takes the map's own output: then it may make a bias superfluous."""
        at = self.stages.index("map")
        return self.stages[at + 1 : at + 2] == ("norm",)

    def width_at(self, stage: Stage) -> int:
        """How many units that stage is given."""
        before = self.stages.index(stage) < self.stages.index("map")
        return self.inputs if before else self.outputs

    @property
    def kernel(self) -> int:
        """Side of the square kernel."""
        return KERNEL_SIZE[self.kind]

    @property
    def groups(self) -> int:
        """Groups of the convolution: a depthwise kernel sees one channel."""
        return self.inputs if self.kind == "depthwise" else 1

    @property
    def fan_in(self) -> int:
        """Inputs that feed one output."""
        return self.inputs // self.groups * self.kernel**2

    @property
    def fan_out(self) -> int:
        """Outputs that one input feeds (at stride 1)."""
        return self.outputs // self.groups * self.kernel**2

    @property
    def keeps_shape(self) -> bool:
        """Whether output and input have the same shape."""
        return self.inputs == self.outputs and self.stride == 1


@dataclass(frozen=True)
class BlockSpec:
    """Layers in a row, with a shortcut around them or not, and a 2x2 max-pool after them or not.

    `projection` is a layer in the shortcut, where the block changes the shape.
    """

    layers: tuple[LayerSpec, ...]
    shortcut: bool = False
    pool: bool = False
    projection: LayerSpec | None = None


@dataclass(frozen=True)
class Blueprint:
    """A whole model: blocks, then (for images) a global average, then the readout."""

    blocks: tuple[BlockSpec, ...]
    readout: LayerSpec

    def layers(self) -> Iterator[LayerSpec]:
        """All layers, from input to readout: their order is `layer_index`."""
        for block in self.blocks:
            yield from block.layers
            if block.projection:
                yield block.projection
        yield self.readout

    @property
    def spatial(self) -> bool:
        """Whether the hidden layers are convolutions."""
        return any(layer.kind != "linear" for layer in self.layers())


def grouped(layers: list[LayerSpec], span: int) -> list[BlockSpec]:
    """Blocks of up to `span` layers that keep their shape, each with a shortcut.

    Layers that change the shape stand alone, and without shortcuts (`span` 0) each does.
    """
    blocks: list[BlockSpec] = []
    waiting: list[LayerSpec] = []
    for layer in layers:
        if not (span and layer.keeps_shape):
            blocks += _shortcut(waiting)
            waiting = []
            blocks.append(BlockSpec((layer,)))
            continue
        waiting.append(layer)
        if len(waiting) == span:
            blocks += _shortcut(waiting)
            waiting = []
    return blocks + _shortcut(waiting)


def _shortcut(layers: list[LayerSpec]) -> list[BlockSpec]:
    return [BlockSpec(tuple(layers), shortcut=True)] if layers else []


def staged(depth: int, stages: int, size: int) -> list[int]:
    """Depth divided over stages as evenly as it goes, earlier stages first.

    Each stage after the first halves the image, so `size` (its shorter side) bounds their number.
    """
    if depth < stages:
        raise ConfigError(f"depth {depth} is less than the {stages} stages it is divided over")
    if size < 2 ** (stages - 1):
        raise ConfigError(f"{stages} stages halve a {size} pixel image below one pixel")
    return [depth // stages + (stage < depth % stages) for stage in range(stages)]
