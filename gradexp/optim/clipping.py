"""Gradient clipping, in place, without a host sync."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from gradexp.registry import Positive, Registry

if TYPE_CHECKING:
    from torch import Tensor

Clip: TypeAlias = Callable[["list[Tensor]", "Tensor"], None]
"""Changes gradients in place, given them and their total norm before clipping (a 0-d tensor)."""

CLIPS: Registry[Callable[..., Clip | None]] = Registry(
    "clip", "gradient clipping", product=(Callable, type(None))
)


@CLIPS.register("none")
def none() -> None:
    """Gradients reach the optimizer as they are."""


@CLIPS.register("norm", source="Pascanu et al. 2013")
def norm(*, max_norm: Positive = 1.0) -> Clip:
    """Scale all gradients together so that their total L2 norm is at most max_norm.

    A gradient whose norm is not finite is left as it is: scaling it would turn infinities into
    NaN without a word, and the run must show what really happened.
    """

    def clip(gradients: list[Tensor], total: Tensor) -> None:
        import torch

        factor = (max_norm / total).clamp(max=1.0)
        factor = torch.where(torch.isfinite(total), factor, 1.0).to(gradients[0].dtype)
        torch._foreach_mul_(gradients, factor)

    return clip


@CLIPS.register("value")
def value(*, max_value: Positive = 1.0) -> Clip:
    """Limit each entry of each gradient to [-max_value, max_value]."""

    def clip(gradients: list[Tensor], _total: Tensor) -> None:
        import torch

        torch._foreach_clamp_min_(gradients, -max_value)
        torch._foreach_clamp_max_(gradients, max_value)

    return clip
