"""Residual connections: what carries the signal past a group of layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gradexp.registry import Count, Positive, Registry

RESIDUALS: Registry[Callable[..., Residual | None]] = Registry(
    "residual", "shortcuts past groups of layers"
)


@dataclass(frozen=True)
class Residual:
    """x + scale * F(x), around groups of `span` layers F that keep the shape of x."""

    span: int
    scale: float


@RESIDUALS.register("none")
def none() -> None:
    """No shortcuts: a plain net."""


@RESIDUALS.register("identity", source="He et al. 2016")
def identity(*, span: Count = 2, scale: Positive = 1.0) -> Residual:
    """X + scale * F(x) around `span` layers (one block in mobilenet_v1) wherever shapes agree."""
    return Residual(span, scale)
