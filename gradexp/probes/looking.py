"""One probe: the net looks at a fixed set of examples, in training mode, and leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from gradexp.nn.network import Network
from gradexp.probes.capture import captured, undisturbed
from gradexp.probes.certificates import certified_units
from gradexp.probes.units import Event, UnitLedger, empty_kernels
from gradexp.probes.views import Seen, Touched, View, views_of
from gradexp.records.files import Cell

VALUES_AT_ONCE = 2**23  # of pre, in all layers of a dense net: 100 MB with post and gradients
Row = tuple[Cell, ...]
NO_LEDGER: tuple[Row, list[Event]] = ((None,) * 6, [])
"""Of a layer whose activation has no flat region: empty, not 0."""


def most_at_once(network: Network, batch_size: int, *, alone: bool) -> int:
    """How many examples a probe takes through the net together.

    Args:
        network: the net.
        batch_size: of training, whose memory there is in any case.
        alone: no example's activations depend on the others: then a dense net, which has few,
            takes more of them, in the same memory as a small image net.
    """
    if network.spatial or not alone:
        return batch_size
    values = sum(layer.spec.outputs for layer in network.layers())
    return max(batch_size, VALUES_AT_ONCE // values)


@dataclass(frozen=True)
class ProbeSet:
    """The fixed examples of a run's probes, and the range of valid inputs.

    Attributes:
        inputs: [n, C, H, W], on the device.
        targets: [n], on the device.
        batch_size: at most so many examples go through the net together.
        low: least value of a valid input, per channel [C].
        high: largest value of a valid input, per channel [C].
    """

    inputs: Tensor
    targets: Tensor
    batch_size: int
    low: Tensor
    high: Tensor

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Nearly equal batches of two and more, so that none is too small for batch statistics."""
        count = min(-(-len(self.targets) // self.batch_size), max(1, len(self.targets) // 2))
        yield from zip(
            self.inputs.tensor_split(count), self.targets.tensor_split(count), strict=True
        )


@dataclass
class ProbeRows:
    """Rows for `signal.csv`, `units.csv` and `unit_events.csv`."""

    signal: list[Row] = field(default_factory=list)
    units: list[Row] = field(default_factory=list)
    unit_events: list[Row] = field(default_factory=list)


class Look:
    """What the batches of one probe have shown so far."""

    def __init__(self, network: Network) -> None:
        self.network, self.layers = network, network.layers()
        self.touched = Touched(self.layers)
        self._views: list[View] = []

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """One batch forward and backward.

        The loss is the sum over examples, so that dLoss/dpre_i is that of example i's own loss.
        """
        with captured(self.layers) as seen, torch.enable_grad():
            loss = F.cross_entropy(self.network(inputs), targets, reduction="sum")
        weights = [self.layers[index].weight for index in self.touched.open]
        gradients = torch.autograd.grad(loss, [*seen.pre, *weights])
        self._views = self._views or views_of(self.layers, seen.pre)
        with torch.no_grad():
            for view in self._views:
                view.add(seen.pre, seen.post, gradients)
            self.touched.add(list(gradients[len(self.layers) :]))

    def seen(self) -> list[Seen]:
        """What was seen of each layer, in forward order."""
        found = {
            index: seen
            for view in self._views
            for index, seen in zip(view.indices, view.seen(), strict=True)
        }
        return [found[index] for index in range(len(self.layers))]


def probe(network: Network, probe_set: ProbeSet, ledger: UnitLedger, step: int) -> ProbeRows:
    """Look at the net after `step` updates; the ledger books what became of its units."""
    look = Look(network)
    with undisturbed(network):
        for inputs, targets in probe_set.batches():
            look.add(inputs, targets)
    channels, height, width = probe_set.inputs.shape[1:]
    certified = certified_units(network, (channels, height, width), probe_set.low, probe_set.high)
    rows = ProbeRows()
    for index, (layer, seen, proved, without) in enumerate(
        zip(look.layers, look.seen(), certified, look.touched.shares_without(), strict=True)
    ):
        key = (step, index + 1, layer.spec.name)
        cells, events = _book(ledger, index + 1, seen, proved) if layer.facts.flat else NO_LEDGER
        rows.signal.append((*key, *seen.signal))
        rows.units.append((*key, layer.spec.outputs, *cells, without, empty_kernels(layer)))
        rows.unit_events += [(*key, unit, event) for unit, event in events]
    return rows


def _book(ledger: UnitLedger, index: int, seen: Seen, proved: Tensor) -> tuple[Row, list[Event]]:
    """The ledger's cells of a layer, and what happened to its units."""
    counts, events = ledger.enter(index, seen.dead, seen.finite, proved)
    cells = (counts.dead, counts.born_dead, counts.died, counts.revived, counts.certified_dead)
    return (*cells, seen.inactive_fraction), events
