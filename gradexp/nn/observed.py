"""What a layer is to whoever observes it, in a net of ours or in anybody's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gradexp.nn.activations import Activation

NONE = "none"


@dataclass(frozen=True, eq=False)
class Observed:
    """One weight-bearing map with its norm and activation.

    Attributes:
        name: readable: `hidden.3`; in a watched module its own dotted name.
        kind: linear, conv, depthwise, pointwise, embedding, recurrent, attention.
        fan_in: inputs that feed one output, groups counted.
        fan_out: outputs that one input feeds, groups counted.
        units: features of a linear layer, channels of a convolution.
        weights: the parameters that make up the map's weight; several where it is parametrized.
        biases: the parameters that make up its bias; none where it has none.
        others: parameters of its norm and activation.
        activation: what it is called; `none` where none follows the map.
        norm: what its normalization is called, or `none`.
        facts: what is known of the activation; None where there is none.
        function: the activation as a function of pre; None where there is none.
        activations: modules that are an activation as a whole, whatever functions they call.
        passing: modules whose output is still pre: norms of anybody's making.
    """

    name: str
    kind: str
    fan_in: int
    fan_out: int
    units: int
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...] = ()
    others: tuple[Tensor, ...] = ()
    activation: str = NONE
    norm: str = NONE
    facts: Activation | None = None
    function: Callable[[Tensor], Tensor] | None = None
    activations: tuple[nn.Module, ...] = ()
    passing: tuple[nn.Module, ...] = ()

    @property
    def flat(self) -> tuple[tuple[float, float], ...]:
        """Closed intervals of pre on which the derivative is exactly 0."""
        return self.facts.flat if self.facts else ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All parameters of map, norm and activation."""
        return (*self.weights, *self.biases, *self.others)

    def row(self, index: int) -> dict[str, Any]:
        """Its row in `layers.csv`."""
        facts = self.facts
        return {
            "layer_index": index,
            "layer": self.name,
            "kind": self.kind,
            "fan_in": self.fan_in,
            "fan_out": self.fan_out,
            "units": self.units,
            "parameters": sum(one.numel() for one in self.tensors if one.requires_grad),
            "activation": self.activation,
            "norm": self.norm,
            "flat": facts.flat_text if facts else "",
            "bounded": int(facts.bounded) if facts else None,
            "slope": facts.slope if facts else None,
            "init_std": _std(self.weights),
        }


def _std(weights: tuple[Tensor, ...]) -> float:
    """Population standard deviation of all entries, in float64."""
    import torch

    values = torch.cat([one.detach().double().flatten().cpu() for one in weights])
    return float(values.std(correction=0))
