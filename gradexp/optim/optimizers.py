"""Optimizers: torch's own, in their fused or foreach form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from gradexp.errors import ConfigError
from gradexp.optim.kernels import Kernel, adam_kernel, sgd_kernel
from gradexp.registry import Fraction, Positive, Registry

if TYPE_CHECKING:
    from torch.optim import Optimizer

Groups: TypeAlias = list[dict[str, Any]]
MakeOptimizer: TypeAlias = Callable[[Groups], "Optimizer"]
"""From parameter groups (each with its own weight_decay) to an optimizer."""


@dataclass(frozen=True)
class Elementwise:
    """Makes an optimizer that treats every entry alike, whatever tensor it stands in.

    It may be given many parameters laid into one, which spares an operation for each of them.

    Attributes:
        make: from parameter groups to the optimizer.
        kernel: does the same as the optimizer's `step`, where that is one of torch's fused kernels.
    """

    make: MakeOptimizer
    kernel: Kernel | None = None

    def __call__(self, groups: Groups) -> Optimizer:
        """The optimizer of these parameter groups."""
        return self.make(groups)


OPTIMIZERS: Registry[Callable[..., MakeOptimizer]] = Registry(
    "optimizer", "how gradients become updates", product=Callable
)


@OPTIMIZERS.register("sgd", source="Robbins & Monro 1951; Polyak 1964")
def sgd(*, lr: Positive = 0.05, momentum: Fraction = 0.0, nesterov: bool = False) -> MakeOptimizer:
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum where wanted."""
    if nesterov and not momentum:
        raise ConfigError("nesterov: true has no effect without momentum above 0")
    return _fused("SGD", sgd_kernel, lr=lr, momentum=momentum, nesterov=nesterov)


@OPTIMIZERS.register("adam", source="Kingma & Ba 2015")
def adam(
    *, lr: Positive = 1e-3, beta1: Fraction = 0.9, beta2: Fraction = 0.999, eps: Positive = 1e-8
) -> MakeOptimizer:
    """Adam; weight decay is added to the gradient."""
    return _fused("Adam", adam_kernel, lr=lr, betas=(beta1, beta2), eps=eps)


@OPTIMIZERS.register("adamw", source="Loshchilov & Hutter 2019")
def adamw(
    *, lr: Positive = 1e-3, beta1: Fraction = 0.9, beta2: Fraction = 0.999, eps: Positive = 1e-8
) -> MakeOptimizer:
    """Adam with weight decay decoupled from the gradient."""
    return _fused("AdamW", adam_kernel, lr=lr, betas=(beta1, beta2), eps=eps)


@OPTIMIZERS.register("rmsprop", source="Tieleman & Hinton 2012")
def rmsprop(
    *, lr: Positive = 1e-3, alpha: Fraction = 0.99, momentum: Fraction = 0.0, eps: Positive = 1e-8
) -> MakeOptimizer:
    """Gradients divided by the root of their running mean square."""

    def make(groups: Groups) -> Optimizer:
        from torch import optim

        return optim.RMSprop(groups, lr=lr, alpha=alpha, momentum=momentum, eps=eps, foreach=True)

    return Elementwise(make)


def _fused(name: str, kernel: Kernel, **options: Any) -> MakeOptimizer:
    """One of torch's optimizers, with its fused kernel where that is sure to exist."""

    def make(groups: Groups) -> Optimizer:
        from torch import optim

        fused = True if groups[0]["params"][0].device.type in {"cpu", "cuda"} else None
        optimizer: Optimizer = getattr(optim, name)(groups, fused=fused, **options)
        return optimizer

    return Elementwise(make, kernel)
