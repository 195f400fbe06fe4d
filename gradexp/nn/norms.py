"""Normalizations, between a layer's linear map and its activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradexp.registry import Positive, Registry, UnitInterval

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Norm:
    """A normalization of pre.

    Attributes:
        module: makes the torch module, called with the number of units and whether they are
            channels of an image.
        removes_bias: it subtracts each unit's own mean, so that a bias before it has no effect.
        across_examples: its training-time output for one example depends on the others.
    """

    module: Callable[[int, bool], nn.Module]
    removes_bias: bool = False
    across_examples: bool = False


NORMS: Registry[Callable[..., Norm | None]] = Registry(
    "norm",
    "normalization between linear map and activation",
    product=(Norm, type(None)),
)


@NORMS.register("none")
def none() -> None:
    """No normalization."""


@NORMS.register("batch", source="Ioffe & Szegedy 2015")
def batch(*, eps: Positive = 1e-5, momentum: UnitInterval = 0.1) -> Norm:
    """Each unit to mean 0 and variance 1 over the batch (and positions), then scale and shift."""

    def module(units: int, spatial: bool) -> nn.Module:
        from torch import nn

        kind = nn.BatchNorm2d if spatial else nn.BatchNorm1d
        return kind(units, eps=eps, momentum=momentum)

    return Norm(module, removes_bias=True, across_examples=True)


@NORMS.register("layer", source="Ba et al. 2016")
def layer(*, eps: Positive = 1e-5) -> Norm:
    """All units (and positions) of an example to mean 0 and variance 1, then scale and shift."""

    def module(units: int, spatial: bool) -> nn.Module:
        from torch import nn

        return nn.GroupNorm(1, units, eps=eps) if spatial else nn.LayerNorm(units, eps=eps)

    return Norm(module)
