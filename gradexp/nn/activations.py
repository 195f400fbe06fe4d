"""Activations, with the facts about their shape that probes and certificates need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from gradexp.registry import NonNegative, Positive, Registry

if TYPE_CHECKING:
    from torch import nn

INFINITY = math.inf
BELOW_ZERO = (-INFINITY, 0.0)


@dataclass(frozen=True)
class Activation:
    """An elementwise function of pre, and what is known about it.

    Attributes:
        module: makes the torch module, never in place; called with the number of units.
        flat: closed intervals of pre on which the derivative is exactly 0 by construction (not by
            underflow). Units can be dead only where there is one.
        slope: derivative far left of 0 for rectifiers, used by kaiming inits; 0 where it has no
            meaning.
        steep: wherever the derivative is not exactly 0, its magnitude is 0.02 or more.
        bounded: its values stay within limits on both sides: it saturates.
        turns: values of pre at which the function changes between falling and rising; between
            them it is monotone, so its range over an interval is found at ends and turns. None
            where they are not known: then nothing can be certified.

    What is said here is checked when a net is built with it (`gradexp.nn.checks`).
    """

    module: Callable[[int], nn.Module]
    flat: tuple[tuple[float, float], ...] = ()
    slope: float = 0.0
    steep: bool = False
    bounded: bool = False
    turns: tuple[float, ...] | None = None

    @property
    def flat_text(self) -> str:
        """The flat intervals as `layers.csv` has them: `-inf..0 6..inf`."""
        return " ".join(f"{low:g}..{high:g}" for low, high in self.flat)


ACTIVATIONS: Registry[Callable[..., Activation]] = Registry(
    "activation", "what follows each linear map", product=Activation
)


@ACTIVATIONS.register("identity", aliases=("linear",))
def identity() -> Activation:
    """x: a deep linear net."""
    return Activation(lambda _units: _nn().Identity(), slope=1.0, steep=True, turns=())


@ACTIVATIONS.register("sigmoid")
def sigmoid() -> Activation:
    """1 / (1 + exp(-x)); its derivative is at most 1/4."""
    return Activation(lambda _units: _nn().Sigmoid(), bounded=True, turns=())


@ACTIVATIONS.register("tanh")
def tanh() -> Activation:
    """The hyperbolic tangent; its derivative is 1 at 0 and less elsewhere."""
    return Activation(lambda _units: _nn().Tanh(), bounded=True, turns=())


@ACTIVATIONS.register("relu", source="Nair & Hinton 2010")
def relu() -> Activation:
    """max(0, x)."""
    return Activation(lambda _units: _nn().ReLU(), flat=(BELOW_ZERO,), steep=True, turns=())


@ACTIVATIONS.register("relu6", source="Krizhevsky 2010")
def relu6() -> Activation:
    """min(max(0, x), 6): flat on both sides."""
    return Activation(
        lambda _units: _nn().ReLU6(),
        flat=(BELOW_ZERO, (6.0, INFINITY)),
        steep=True,
        bounded=True,
        turns=(),
    )


@ACTIVATIONS.register("leaky_relu", source="Maas et al. 2013")
def leaky_relu(*, negative_slope: NonNegative = 0.01) -> Activation:
    """X where x > 0, else negative_slope * x."""
    return Activation(
        lambda _units: _nn().LeakyReLU(negative_slope),
        flat=() if negative_slope else (BELOW_ZERO,),
        slope=negative_slope,
        turns=(),
    )


@ACTIVATIONS.register("prelu", source="He et al. 2015")
def prelu(*, initial_slope: NonNegative = 0.25) -> Activation:
    """A leaky ReLU whose slope is learned, one per unit."""
    return Activation(
        lambda units: _nn().PReLU(units, init=initial_slope), slope=initial_slope, turns=(0.0,)
    )


@ACTIVATIONS.register("elu", source="Clevert et al. 2016")
def elu(*, alpha: Positive = 1.0) -> Activation:
    """X where x > 0, else alpha * (exp(x) - 1)."""
    return Activation(lambda _units: _nn().ELU(alpha), turns=())


@ACTIVATIONS.register("selu", source="Klambauer et al. 2017")
def selu() -> Activation:
    """An ELU scaled so that mean 0 and variance 1 are a fixed point."""
    return Activation(lambda _units: _nn().SELU(), turns=())


@ACTIVATIONS.register("softplus", source="Dugas et al. 2001")
def softplus() -> Activation:
    """log(1 + exp(x)): a smooth ReLU."""
    return Activation(lambda _units: _nn().Softplus(), turns=())


@ACTIVATIONS.register("silu", source="Elfwing et al. 2018", aliases=("swish",))
def silu() -> Activation:
    """X * sigmoid(x)."""
    return Activation(lambda _units: _nn().SiLU(), turns=(-1.2784645427610738,))


@ACTIVATIONS.register("gelu", source="Hendrycks & Gimpel 2016")
def gelu() -> Activation:
    """X times the normal distribution function of x."""
    return Activation(lambda _units: _nn().GELU(), turns=(-0.7517915246935645,))


@ACTIVATIONS.register("hardtanh", source="Collobert 2004")
def hardtanh() -> Activation:
    """X limited to [-1, 1]: flat on both sides."""
    return Activation(
        lambda _units: _nn().Hardtanh(),
        flat=((-INFINITY, -1.0), (1.0, INFINITY)),
        steep=True,
        bounded=True,
        turns=(),
    )


@ACTIVATIONS.register("hardsigmoid", source="Courbariaux et al. 2015")
def hardsigmoid() -> Activation:
    """X / 6 + 1/2 limited to [0, 1]: flat below -3 and above 3."""
    return Activation(
        lambda _units: _nn().Hardsigmoid(),
        flat=((-INFINITY, -3.0), (3.0, INFINITY)),
        steep=True,
        bounded=True,
        turns=(),
    )


@ACTIVATIONS.register("hardswish", source="Howard et al. 2019")
def hardswish() -> Activation:
    """X * hardsigmoid(x): flat below -3."""
    return Activation(lambda _units: _nn().Hardswish(), flat=((-INFINITY, -3.0),), turns=(-1.5,))


def _nn() -> ModuleType:
    from torch import nn

    return nn
