"""Weight initializations: how wide the first random weights are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gradexp.registry import NonNegative, Positive, Registry

if TYPE_CHECKING:
    from torch import Generator, Tensor

FanMode = Literal["fan_in", "fan_out"]


@dataclass(frozen=True)
class Fans:
    """What an init knows of a layer.

    Attributes:
        fan_in: inputs that feed one output, groups counted.
        fan_out: outputs that one input feeds, groups counted.
        slope: derivative of the following activation far left of 0; 1 where none follows.
    """

    fan_in: int
    fan_out: int
    slope: float

    def rectifier_gain(self) -> float:
        """sqrt(2 / (1 + slope^2)) (He et al. 2015, eq. 15); 1 where no activation follows."""
        return math.sqrt(2.0 / (1.0 + self.slope**2))


Fill = Callable[["Tensor", Fans, "Generator"], object]


@dataclass(frozen=True)
class Init:
    """Fills a layer's weight and bias in place from a seeded generator."""

    weight: Fill
    bias: Fill


INITS: Registry[Callable[..., Init]] = Registry(
    "init", "how weights and biases begin", product=Init
)


def _scaled(weight: Fill, bias_std: float) -> Init:
    return Init(weight, _normal(lambda _fans: bias_std))


def _normal(std: Callable[[Fans], float]) -> Fill:
    return lambda tensor, fans, generator: tensor.normal_(0.0, std(fans), generator=generator)


def _uniform(std: Callable[[Fans], float]) -> Fill:
    """Uniform with that standard deviation: its limit is sqrt(3) times as large."""

    def fill(tensor: Tensor, fans: Fans, generator: Generator) -> None:
        limit = math.sqrt(3.0) * std(fans)
        tensor.uniform_(-limit, limit, generator=generator)

    return fill


@INITS.register("torch", aliases=("default",))
def torch_default() -> Init:
    """What torch's own layers do: weights and biases uniform within 1 / sqrt(fan_in)."""
    fill = _uniform(lambda fans: 1.0 / math.sqrt(3.0 * fans.fan_in))
    return Init(fill, fill)


@INITS.register("normal")
def normal(*, std: Positive = 0.01, bias_std: NonNegative = 0.0) -> Init:
    """Normal with a fixed standard deviation, whatever the width."""
    return _scaled(_normal(lambda _fans: std), bias_std)


@INITS.register("uniform")
def uniform(*, limit: Positive = 0.05, bias_std: NonNegative = 0.0) -> Init:
    """Uniform within [-limit, limit], whatever the width."""
    return _scaled(_uniform(lambda _fans: limit / math.sqrt(3.0)), bias_std)


def _xavier(gain: float) -> Callable[[Fans], float]:
    return lambda fans: gain * math.sqrt(2.0 / (fans.fan_in + fans.fan_out))


@INITS.register("xavier_normal", source="Glorot & Bengio 2010", aliases=("glorot_normal",))
def xavier_normal(*, gain: Positive = 1.0, bias_std: NonNegative = 0.0) -> Init:
    """Normal with std gain * sqrt(2 / (fan_in + fan_out))."""
    return _scaled(_normal(_xavier(gain)), bias_std)


@INITS.register("xavier_uniform", source="Glorot & Bengio 2010", aliases=("glorot_uniform",))
def xavier_uniform(*, gain: Positive = 1.0, bias_std: NonNegative = 0.0) -> Init:
    """Uniform with std gain * sqrt(2 / (fan_in + fan_out))."""
    return _scaled(_uniform(_xavier(gain)), bias_std)


def _kaiming(mode: FanMode) -> Callable[[Fans], float]:
    return lambda fans: fans.rectifier_gain() / math.sqrt(getattr(fans, mode))


@INITS.register("kaiming_normal", source="He et al. 2015", aliases=("he_normal",))
def kaiming_normal(*, mode: FanMode = "fan_in", bias_std: NonNegative = 0.0) -> Init:
    """Normal with std sqrt(2 / ((1 + slope^2) fan)), slope of the rectifier that follows."""
    return _scaled(_normal(_kaiming(mode)), bias_std)


@INITS.register("kaiming_uniform", source="He et al. 2015", aliases=("he_uniform",))
def kaiming_uniform(*, mode: FanMode = "fan_in", bias_std: NonNegative = 0.0) -> Init:
    """Uniform with std sqrt(2 / ((1 + slope^2) fan)), slope of the rectifier that follows."""
    return _scaled(_uniform(_kaiming(mode)), bias_std)


def _lecun(fans: Fans) -> float:
    return 1.0 / math.sqrt(fans.fan_in)


@INITS.register("lecun_normal", source="LeCun et al. 1998")
def lecun_normal(*, bias_std: NonNegative = 0.0) -> Init:
    """Normal with std 1 / sqrt(fan_in)."""
    return _scaled(_normal(_lecun), bias_std)


@INITS.register("lecun_uniform", source="LeCun et al. 1998")
def lecun_uniform(*, bias_std: NonNegative = 0.0) -> Init:
    """Uniform with std 1 / sqrt(fan_in)."""
    return _scaled(_uniform(_lecun), bias_std)


@INITS.register("orthogonal", source="Saxe et al. 2014")
def orthogonal(*, gain: Positive = 1.0, bias_std: NonNegative = 0.0) -> Init:
    """A random (semi-)orthogonal matrix times gain: keeps the length of every input."""

    def fill(weight: Tensor, _fans: Fans, generator: Generator) -> None:
        from torch import nn

        nn.init.orthogonal_(weight, gain, generator=generator)

    return _scaled(fill, bias_std)
