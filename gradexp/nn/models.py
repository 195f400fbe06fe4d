"""The model families: from an input shape to a blueprint."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from gradexp.errors import ConfigError, nearest
from gradexp.nn.blueprint import READOUT, BlockSpec, Blueprint, LayerSpec, grouped, staged
from gradexp.registry import Count, Registry

if TYPE_CHECKING:
    from torch import nn

Shape: TypeAlias = tuple[int, int, int]
Design: TypeAlias = Callable[[Shape, int, int], Blueprint]
"""Called with the input shape (C, H, W), the classes and the span of shortcuts (0: none)."""
WholeDesign: TypeAlias = "Callable[[Shape, int], nn.Module]"
"""Called with the input shape and the classes: a module of anybody's making, images to logits."""

MODELS: Registry[Callable[..., Design | WholeDesign]] = Registry(
    "model", "families of nets", product=Callable
)


def is_whole(design: Design | WholeDesign) -> bool:
    """Whether a design makes a module as a whole: then it takes no span of shortcuts."""
    return len(inspect.signature(design).parameters) == 2  # noqa: PLR2004  shape and classes


@MODELS.register("mlp")
def mlp(*, depth: Count = 5, width: Count = 128) -> Design:
    """Fully connected: `depth` hidden layers of `width` units, then the readout."""

    def design(shape: Shape, classes: int, span: int) -> Blueprint:
        inputs = [math.prod(shape)] + [width] * (depth - 1)
        layers = [
            LayerSpec(f"hidden.{index}", "linear", size, width)
            for index, size in enumerate(inputs, start=1)
        ]
        blocks = [BlockSpec((layers[0],)), *grouped(layers[1:], span)]
        return Blueprint(tuple(blocks), _readout(width, classes))

    return design


@MODELS.register("cnn", source="Simonyan & Zisserman 2015")
def cnn(*, depth: Count = 6, width: Count = 32, stages: Count = 3) -> Design:
    """Plain 3x3 convolutions in stages that halve the image by max-pooling and double the width."""

    def design(shape: Shape, classes: int, span: int) -> Blueprint:
        channels, blocks = shape[0], list[BlockSpec]()
        for stage, length in enumerate(staged(depth, stages, min(shape[1:]))):
            outputs = width * 2**stage
            inputs = [channels] + [outputs] * (length - 1)
            layers = [
                LayerSpec(f"stage{stage + 1}.conv{index}", "conv", size, outputs)
                for index, size in enumerate(inputs, start=1)
            ]
            stage_blocks = [BlockSpec((layers[0],)), *grouped(layers[1:], span)]
            stage_blocks[-1] = replace(stage_blocks[-1], pool=stage + 1 < stages)
            blocks += stage_blocks
            channels = outputs
        return Blueprint(tuple(blocks), _readout(channels, classes))

    return design


@MODELS.register("mobilenet_v1", source="Howard et al. 2017")
def mobilenet_v1(*, depth: Count = 6, width: Count = 32, stages: Count = 3) -> Design:
    """A 3x3 stem, then `depth` blocks of depthwise 3x3 and pointwise layers.

    The first block of each stage doubles the channels; of each stage but the first, halves the
    image. A shortcut goes around a block, whatever its span.
    """

    def design(shape: Shape, classes: int, span: int) -> Blueprint:
        blocks = [BlockSpec((LayerSpec("stem", "conv", shape[0], width),))]
        channels = width
        for stage, length in enumerate(staged(depth, stages, min(shape[1:]))):
            outputs = width * 2 ** (stage + 1)
            for position in range(length):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(_separable(len(blocks), channels, outputs, stride, span))
                channels = outputs
        return Blueprint(tuple(blocks), _readout(channels, classes))

    return design


def _separable(index: int, inputs: int, outputs: int, stride: int, span: int) -> BlockSpec:
    layers = (
        LayerSpec(f"block{index}.depthwise", "depthwise", inputs, inputs, stride),
        LayerSpec(f"block{index}.pointwise", "pointwise", inputs, outputs),
    )
    return BlockSpec(layers, shortcut=span > 0 and all(layer.keeps_shape for layer in layers))


@MODELS.register("torchvision", source="torchvision.models")
def torchvision(*, name: str = "resnet18") -> WholeDesign:
    """A classification net of torchvision, for the data's shape and classes, not pretrained.

    The first convolution takes as many channels as the images have. Its own init, activations and
    norms stay where none are chosen.
    """
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise ConfigError(
            f"torchvision has no classification net '{name}', but resnet18, vgg16_bn, "
            f"mobilenet_v2 and {len(names) - 3} others.{nearest(name, names)}"
        )

    def design(shape: Shape, classes: int) -> nn.Module:
        own = {"init_weights": True} if name in {"googlenet", "inception_v3"} else {}
        module: nn.Module = models.get_model(name, weights=None, num_classes=classes, **own)
        return _for_channels(module, shape[0])

    return design


def _for_channels(module: nn.Module, channels: int) -> nn.Module:
    """The module with a first convolution of so many channels, as widely drawn as its own."""
    import torch
    from torch import nn

    first = next(one for one in module.modules() if isinstance(one, nn.Conv2d))
    if first.in_channels != channels:
        outputs, _, *kernel = first.weight.shape
        with torch.no_grad():
            drawn = torch.randn(outputs, channels, *kernel) * first.weight.std()
        first.in_channels, first.weight = channels, nn.Parameter(drawn)
    return module


def _readout(inputs: int, classes: int) -> LayerSpec:
    return LayerSpec("readout", "linear", inputs, classes, stages=READOUT)
