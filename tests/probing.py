"""Looking at nets that tests have built by hand."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from gradexp.nn.network import Network
from gradexp.probes import PROBES, Prober, ProbeSet, Subject
from gradexp.probes.certificates import certified_units


def certificates(
    network: Network, shape: tuple[int, int, int], low: Tensor, high: Tensor
) -> list[Tensor | None]:
    """Of each layer what is proved for inputs between low and high, [C] each."""
    ends = [end.view(1, -1, 1, 1).expand(1, *shape) for end in (low, high)]
    return certified_units(network, network.observed(), *ends)


def proved(
    network: Network, shape: tuple[int, int, int], low: Tensor, high: Tensor
) -> list[Tensor]:
    """As `certificates`; nothing is proved of a layer of which nothing can be said."""
    return [
        torch.zeros(layer.spec.outputs, dtype=torch.bool) if found is None else found
        for layer, found in zip(
            network.layers(), certificates(network, shape, low, high), strict=True
        )
    ]


def prober(network: Network, inputs: Tensor, targets: Tensor, batch_size: int) -> Prober:
    """Looks at a net as a run does, with inputs [n, C, H, W] that may be anything in [0, 1]."""
    low, high = torch.zeros(inputs.shape[1]), torch.ones(inputs.shape[1])
    shape = (inputs.shape[1], inputs.shape[2], inputs.shape[3])
    subject = Subject(
        network,
        network.observed(),
        partial(F.cross_entropy, reduction="sum"),
        partial(certificates, network, shape, low, high),
    )
    examples = ProbeSet(inputs, targets, batch_size)
    return Prober(subject, examples, [entry.make() for entry in PROBES])
