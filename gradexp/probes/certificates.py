"""Units that no valid input can ever make fire, by interval propagation.

Bounds on pre and post travel from the range of valid inputs through the net as it is evaluated:
with running statistics and without dropout (interval bound propagation; Gowal et al. 2018). They
are computed in float64 and widened by what float32 arithmetic may add, so that they hold for the
net that really runs.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from functools import singledispatch
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradexp.nn.activations import Activation
from gradexp.nn.bounds import ROUNDING, Bounds
from gradexp.nn.network import Block, Layer, Network
from gradexp.nn.observed import Observed

Found: TypeAlias = dict[int, Tensor]
"""Units proved inactive, bool [units], by the id of their layer's weight."""


class UnknownModule(Exception):  # noqa: N818  no error: there is no rule for this module
    """Nothing can be said of what a module returns."""


@torch.no_grad()
def certified_units(
    module: nn.Module, layers: Sequence[Observed], low: Tensor, high: Tensor
) -> list[Tensor | None]:
    """For each layer the units proved inactive for every valid input: bool [units], on the CPU.

    None for a layer of which nothing can be said: its activation is flat nowhere, or no rule is
    known for a module on the way to it.

    Args:
        module: the net, on any device.
        layers: its layers.
        low: least value of a valid input, [1, ...] as the module takes one.
        high: largest value of a valid input, alike.
    """
    found: Found = {}
    if any(layer.flat for layer in layers):
        with contextlib.suppress(UnknownModule):
            _through(module, Bounds(low.double().cpu(), high.double().cpu()), found)
    return [found.get(id(layer.weights[0])) for layer in layers]


@singledispatch
def _through(module: nn.Module, bounds: Bounds, found: Found) -> Bounds:  # noqa: ARG001  for its kinds
    """What a module's output can be, given what its input can be; notes what that proves."""
    raise UnknownModule(type(module).__name__)


@_through.register
def _(network: Network, bounds: Bounds, found: Found) -> Bounds:
    if not network.spatial:
        bounds = Bounds(bounds.low.flatten(1), bounds.high.flatten(1))
    for block in network.blocks:
        bounds = _through(block, bounds, found)
    if network.spatial:
        bounds = _through_average(bounds)
    return _through(network.readout, bounds, found)


@_through.register
def _(block: Block, inputs: Bounds, found: Found) -> Bounds:
    *first, last = block.layers
    assert isinstance(last, Layer)  # noqa: S101  tells the type checker what Sequential holds
    bounds = inputs
    for layer in first:
        bounds = _through(layer, bounds, found)
    bounds = _through_stages(last, last.before, bounds, found)
    if block.join is not None:
        around = _through(block.projection, inputs, found) if block.projection else inputs
        rule = getattr(block.join, "bounds", None)
        bounds = rule(around, bounds) if rule else bounds.unknown
    bounds = _through_stages(last, last.after, bounds, found)
    if block.pool is not None:
        bounds = Bounds(block.pool(bounds.low), block.pool(bounds.high))
    return bounds


@_through.register
def _(layer: Layer, inputs: Bounds, found: Found) -> Bounds:
    return _through_stages(layer, layer.stages, inputs, found)


def _through_stages(
    layer: Layer, stages: Sequence[nn.Module], bounds: Bounds, found: Found
) -> Bounds:
    for stage in stages:
        if stage is layer.map:
            bounds = _through_map(layer, bounds)
        elif stage is layer.norm:
            bounds = _through_norm(stage, bounds)
        elif stage is layer.activation:
            assert layer.facts  # noqa: S101  it has an activation
            if layer.facts.flat:
                found[id(layer.weight)] = _inside_flat(bounds, layer.facts.flat)
            bounds = _through_activation(layer.activation, layer.facts, bounds)
        # Dropout does nothing at evaluation.
    return bounds


def _through_average(bounds: Bounds) -> Bounds:
    positions = bounds.low[0, 0].numel()
    error = (positions + 1) * ROUNDING * bounds.largest.mean((2, 3))
    return Bounds(bounds.low.mean((2, 3)), bounds.high.mean((2, 3))).widened(error)


def _inside_flat(pre: Bounds, flat: tuple[tuple[float, float], ...]) -> Tensor:
    """Units whose whole range, at every position, lies in one flat interval."""
    low = pre.low[0].flatten(1).amin(1) if pre.low.dim() > 2 else pre.low[0]  # noqa: PLR2004
    high = pre.high[0].flatten(1).amax(1) if pre.high.dim() > 2 else pre.high[0]  # noqa: PLR2004
    inside = torch.zeros_like(low, dtype=torch.bool)
    for start, end in flat:
        inside |= (low >= start) & (high <= end)
    return inside


def _through_map(layer: Layer, inputs: Bounds) -> Bounds:
    """Each bound is a sum of terms that can push it up and terms that can push it down."""
    (low_up, low_down), (up, down) = _terms(layer, inputs)
    bias = _bias(layer)
    error = (layer.spec.fan_in + 2) * ROUNDING * (up - down + low_up - low_down + bias.abs())
    wide = Bounds(low_up + low_down + bias, up + down + bias).widened(error)
    # A sum without a single positive term is not positive however it is rounded; nor negative.
    never_above = (up == 0) & (bias <= 0)
    never_below = (low_down == 0) & (bias >= 0)
    return Bounds(
        torch.where(never_below, wide.low.clamp(min=0), wide.low),
        torch.where(never_above, wide.high.clamp(max=0), wide.high),
    )


def _terms(layer: Layer, inputs: Bounds) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Sums of the non-negative and of the non-positive terms of the lower and the upper bound."""
    weight = layer.weight.detach().double().cpu()
    plus = inputs.low.clamp(min=0), inputs.high.clamp(min=0)
    minus = inputs.low.clamp(max=0), inputs.high.clamp(max=0)
    ends = torch.cat((*plus, *minus))
    # Positive weights keep the order of the ends, negative ones turn it round, and the signs.
    rising, falling = weight.clamp(min=0), weight.clamp(max=0)
    low_plus, high_plus, low_minus, high_minus = torch.split(_apply(layer, ends, rising), 1)
    turned = torch.split(_apply(layer, ends, falling), 1)
    low_up, low_down = low_plus + turned[3], low_minus + turned[1]
    high_up, high_down = high_plus + turned[2], high_minus + turned[0]
    return (low_up, low_down), (high_up, high_down)


def _apply(layer: Layer, values: Tensor, kernel: Tensor) -> Tensor:
    """The layer's linear map with another kernel, without bias."""
    if isinstance(layer.map, nn.Linear):
        return F.linear(values, kernel)
    return F.conv2d(
        values, kernel, None, layer.map.stride, layer.map.padding, groups=layer.spec.groups
    )


def _bias(layer: Layer) -> Tensor:
    if layer.bias is None:
        return torch.zeros((), dtype=torch.float64)
    bias = layer.bias.detach().double().cpu()
    return bias if layer.spec.kind == "linear" else bias.view(-1, 1, 1)


def _through_norm(norm: nn.Module, bounds: Bounds) -> Bounds:
    if isinstance(norm, nn.Identity):
        return bounds
    if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
        return _through_batch_norm(norm, bounds)
    if isinstance(norm, nn.LayerNorm | nn.GroupNorm):
        return _through_layer_norm(norm, bounds)
    return bounds.unknown


def _per_unit(values: Tensor, like: Tensor) -> Tensor:
    return values.detach().double().cpu().view(1, -1, *[1] * (like.dim() - 2))


def _through_batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, bounds: Bounds) -> Bounds:
    """At evaluation an affine map of each unit, from the running statistics."""
    assert norm.running_mean is not None  # noqa: S101  our nets track statistics
    assert norm.running_var is not None  # noqa: S101  our nets track statistics
    mean, variance = (_per_unit(one, bounds.low) for one in (norm.running_mean, norm.running_var))
    gain, shift = (_per_unit(one, bounds.low) for one in (norm.weight, norm.bias))
    factor = gain / torch.sqrt(variance + norm.eps)
    scaled = bounds.scaled(factor)
    error = 8 * ROUNDING * (scaled.largest + (mean * factor).abs() + shift.abs())
    moved = shift - mean * factor
    return Bounds(scaled.low + moved, scaled.high + moved).widened(error)


def _through_layer_norm(norm: nn.LayerNorm | nn.GroupNorm, bounds: Bounds) -> Bounds:
    """N values of mean 0 and variance at most 1 are at most sqrt(n - 1) in magnitude."""
    reach = (bounds.low[0].numel() - 1) ** 0.5
    gain, shift = (_per_unit(one, bounds.low) for one in (norm.weight, norm.bias))
    high = (gain.abs() * reach).expand_as(bounds.high)
    # Subtracting a rounded mean leaves a remainder, which eps alone keeps from growing.
    remainder = gain.abs() * bounds.largest.max() / norm.eps**0.5
    error = 8 * bounds.low[0].numel() * ROUNDING * (high + shift.abs() + remainder)
    return Bounds(shift - high, shift + high).widened(error)


def _through_activation(function: nn.Module, facts: Activation, pre: Bounds) -> Bounds:
    """Between its turns an activation is monotone: its range is found at ends and turns."""
    if facts.turns is None:
        return pre.unknown
    if function.state_dict():
        function = copy.deepcopy(function).double().cpu()
    points = [
        pre.low,
        pre.high,
        *(pre.low.clamp(min=turn).minimum(pre.high) for turn in facts.turns),
    ]
    values = torch.stack([function(point) for point in points])
    low, high = values.amin(0), values.amax(0)
    return Bounds(low - 4 * ROUNDING * low.abs(), high + 4 * ROUNDING * high.abs())
