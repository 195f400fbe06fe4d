"""Residual connections: what carries the signal past a group of layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradexp.registry import Count, Positive, Registry

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Residual:
    """Shortcuts around groups of `span` layers that keep the shape of their input.

    Attributes:
        span: layers in a group.
        join: makes the module that joins x and the branch F(x): called with both, it returns what
            goes on. Where it has a method `bounds` of the same kind (see `gradexp.nn.bounds`),
            units behind it can be certified.
        after_sum: the last activation of a group comes after the join, not before it.
    """

    span: int
    join: Callable[[], nn.Module]
    after_sum: bool = False


RESIDUALS: Registry[Callable[..., Residual | None]] = Registry(
    "residual", "shortcuts past groups of layers", product=(Residual, type(None))
)


@RESIDUALS.register("none")
def none() -> None:
    """No shortcuts: a plain net."""


@RESIDUALS.register("identity", source="He et al. 2016")
def identity(*, span: Count = 2, scale: Positive = 1.0) -> Residual:
    """X + scale * F(x) around `span` layers (one block in mobilenet_v1) wherever shapes agree."""

    def join() -> nn.Module:
        from gradexp.nn.joins import Sum

        return Sum(scale)

    return Residual(span, join)
