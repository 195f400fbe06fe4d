"""Nets that are modules of anybody's making: the chosen parts put in where there is a place.

A part that is not chosen stays as the module has it. One that is chosen and finds no place is an
error: an option without effect would tell of an experiment that was not made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gradexp.errors import ConfigError
from gradexp.nn.activations import Activation
from gradexp.nn.checks import check_activation
from gradexp.nn.inits import Fans, Init
from gradexp.nn.norms import Norm
from gradexp.nn.observed import Observed

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU),
    *(nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign, nn.Sigmoid, nn.Tanh, nn.Hardtanh),
    *(nn.Hardsigmoid, nn.Hardswish),
)
CHANNEL_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


@dataclass(frozen=True)
class ChosenParts:
    """What is to be other than the module has it; None stays.

    `norm` and `norm_chosen` differ since a net may be chosen to have no norm.
    """

    activation: Activation | None = None
    activation_name: str = ""
    init: Init | None = None
    norm: Norm | None = None
    norm_chosen: bool = False


def exchange_parts(module: nn.Module, parts: ChosenParts) -> None:
    """Put the chosen activation and norm where the module has modules of these kinds.

    Raises:
        ConfigError: there is no such place, or the part does not fit there.
    """
    if parts.activation is not None:
        check_activation(parts.activation_name, parts.activation)
        if parts.activation.module(1).state_dict():
            raise ConfigError(
                f"model.activation: {parts.activation_name} has a parameter for each unit; the "
                "places of a module built as a whole do not tell how many there are"
            )
        make = parts.activation.module
        _exchange(module, ACTIVATIONS, lambda _old: make(1), "model.activation", "activation")
    if parts.norm_chosen:
        norm = parts.norm
        _exchange(
            module,
            CHANNEL_NORMS,
            lambda old: nn.Identity() if norm is None else norm.module(*_norm_place(old)),
            "model.norm",
            "norm",
        )


def _norm_place(old: nn.Module) -> tuple[int, bool]:
    """How many units a norm has, and whether they are channels of an image."""
    if isinstance(old, nn.GroupNorm):
        return old.num_channels, True
    assert isinstance(old, nn.BatchNorm1d | nn.BatchNorm2d)  # noqa: S101  one of CHANNEL_NORMS
    return old.num_features, isinstance(old, nn.BatchNorm2d)


def _exchange(
    module: nn.Module,
    kinds: tuple[type[nn.Module], ...],
    make: Callable[[nn.Module], nn.Module],
    key: str,
    what: str,
) -> None:
    places = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, kinds)
    ]
    if not places:
        raise ConfigError(
            f"{key} has no effect: {type(module).__name__} has no {what} modules to exchange "
            "(functions such as F.relu cannot be); leave it out"
        )
    for parent, name, child in places:
        setattr(parent, name, make(child))


@torch.no_grad()
def draw_again(layers: Sequence[Observed], init: Init, generator: torch.Generator) -> None:
    """Draw weights and biases of the layers in order, on the CPU, as those of our own nets.

    Raises:
        ConfigError: the weight of a layer is computed from several parameters.
    """
    for layer in layers:
        slope = layer.facts.slope if layer.facts else 1.0
        fans = Fans(layer.fan_in, layer.fan_out, slope)
        if len(layer.weights) > 1 and layer.kind not in {"recurrent", "attention"}:
            raise ConfigError(
                f"model.init: the weight of {layer.name} is computed from several parameters; "
                "leave the init out"
            )
        for weight in layer.weights:
            init.weight(weight, fans, generator)
        for bias in layer.biases:
            init.bias(bias, fans, generator)
