"""The model families: from an input shape to a blueprint."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from gradexp.nn.blueprint import READOUT, BlockSpec, Blueprint, LayerSpec, grouped, staged
from gradexp.registry import Count, Registry

Shape: TypeAlias = tuple[int, int, int]
Plan: TypeAlias = Callable[[Shape, int, int], Blueprint]
"""Called with the input shape (C, H, W), the classes and the span of shortcuts (0: none)."""

MODELS: Registry[Callable[..., Plan]] = Registry("model", "families of nets", product=Callable)


@MODELS.register("mlp")
def mlp(*, depth: Count = 5, width: Count = 128) -> Plan:
    """Fully connected: `depth` hidden layers of `width` units, then the readout."""

    def plan(shape: Shape, classes: int, span: int) -> Blueprint:
        inputs = [math.prod(shape)] + [width] * (depth - 1)
        layers = [
            LayerSpec(f"hidden.{index}", "linear", size, width)
            for index, size in enumerate(inputs, start=1)
        ]
        blocks = [BlockSpec((layers[0],)), *grouped(layers[1:], span)]
        return Blueprint(tuple(blocks), _readout(width, classes))

    return plan


@MODELS.register("cnn", source="Simonyan & Zisserman 2015")
def cnn(*, depth: Count = 6, width: Count = 32, stages: Count = 3) -> Plan:
    """Plain 3x3 convolutions in stages that halve the image by max-pooling and double the width."""

    def plan(shape: Shape, classes: int, span: int) -> Blueprint:
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

    return plan


@MODELS.register("mobilenet_v1", source="Howard et al. 2017")
def mobilenet_v1(*, depth: Count = 6, width: Count = 32, stages: Count = 3) -> Plan:
    """A 3x3 stem, then `depth` blocks of depthwise 3x3 and pointwise layers.

    The first block of each stage doubles the channels; of each stage but the first, halves the
    image. A shortcut goes around a block, whatever its span.
    """

    def plan(shape: Shape, classes: int, span: int) -> Blueprint:
        blocks = [BlockSpec((LayerSpec("stem", "conv", shape[0], width),))]
        channels = width
        for stage, length in enumerate(staged(depth, stages, min(shape[1:]))):
            outputs = width * 2 ** (stage + 1)
            for position in range(length):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(_separable(len(blocks), channels, outputs, stride, span))
                channels = outputs
        return Blueprint(tuple(blocks), _readout(channels, classes))

    return plan


def _separable(index: int, inputs: int, outputs: int, stride: int, span: int) -> BlockSpec:
    layers = (
        LayerSpec(f"block{index}.depthwise", "depthwise", inputs, inputs, stride),
        LayerSpec(f"block{index}.pointwise", "pointwise", inputs, outputs),
    )
    return BlockSpec(layers, shortcut=span > 0 and all(layer.keeps_shape for layer in layers))


def _readout(inputs: int, classes: int) -> LayerSpec:
    return LayerSpec("readout", "linear", inputs, classes, stages=READOUT)
