"""One probe: the net looks at a fixed set of examples, in training mode, and leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from gradexp.nn.network import Layer, Network
from gradexp.probes.capture import captured, undisturbed
from gradexp.probes.certificates import certified_units
from gradexp.probes.numbers import Moments, norms
from gradexp.probes.units import Activity, UnitLedger, empty_kernels
from gradexp.records.files import Cell

SATURATED_BELOW = 0.02
Row = tuple[Cell, ...]


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


class LayerView:
    """What the batches of one probe show of one layer."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.pre, self.post = Moments(), Moments()
        self.activity = Activity(layer)
        self._pre_grad_squares = torch.zeros((), dtype=torch.float64)
        self._saturated: Tensor | int = 0
        self._has_gradient = torch.zeros_like(layer.weight, dtype=torch.bool)
        self._examples = 0

    def add(self, pre: Tensor, post: Tensor, pre_grad: Tensor, weight_grad: Tensor) -> None:
        """Take in a batch: pre, post and dLoss/dpre [n, units, ...], and dLoss/dWeight."""
        self._examples += len(pre)
        self.pre.add(pre)
        self.post.add(post)
        self.activity.add(pre)
        self._pre_grad_squares += norms([pre_grad])[0].cpu().double() ** 2
        if self.layer.spec.hidden:
            self._saturated = self._saturated + self._count_saturated(pre)
        self._has_gradient |= weight_grad != 0

    def _count_saturated(self, pre: Tensor) -> Tensor:
        with torch.enable_grad():
            point = pre.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.layer.activation(point).sum(), point)
        return (slope.abs() < SATURATED_BELOW).count_nonzero()

    def signal(self) -> Row:
        """Means, deviations, pre_grad_norm and saturated fraction."""
        saturated = float(self._saturated) / self.pre.count if self.layer.spec.hidden else None
        return (
            *(float(value) for one in (self.pre, self.post) for value in (one.mean, one.std)),
            float(torch.sqrt(self._pre_grad_squares / self._examples)),
            saturated,
        )

    def parameters_that_stopped(self) -> Row:
        """Share of weights without gradient, and number of empty kernels."""
        return 1.0 - float(self._has_gradient.double().mean()), empty_kernels(self.layer)


def probe(network: Network, probe_set: ProbeSet, ledger: UnitLedger, step: int) -> ProbeRows:
    """Look at the net after `step` updates; the ledger books what became of its units."""
    layers = network.layers()
    views = [LayerView(layer) for layer in layers]
    with undisturbed(network):
        for inputs, targets in probe_set.batches():
            _look(network, layers, views, inputs, targets)
    channels, height, width = probe_set.inputs.shape[1:]
    certified = certified_units(network, (channels, height, width), probe_set.low, probe_set.high)
    rows = ProbeRows()
    for index, (view, proved) in enumerate(zip(views, certified, strict=True), start=1):
        key = (step, index, view.layer.spec.name)
        rows.signal.append((*key, *view.signal()))
        ledger_cells, events = _book(ledger, index, view, proved)
        units = view.layer.spec.outputs
        rows.units.append((*key, units, *ledger_cells, *view.parameters_that_stopped()))
        rows.unit_events += [(*key, unit, event) for unit, event in events]
    return rows


def _look(
    network: Network, layers: list[Layer], views: list[LayerView], inputs: Tensor, targets: Tensor
) -> None:
    """One batch forward and backward.

    The loss is the sum over examples, so that dLoss/dpre_i is that of example i's own loss.
    """
    with captured(layers) as seen, torch.enable_grad():
        loss = F.cross_entropy(network(inputs), targets, reduction="sum")
    weights = [layer.weight for layer in layers]
    gradients = torch.autograd.grad(loss, [*seen.pre, *weights])
    with torch.no_grad():
        for index, view in enumerate(views):
            view.add(
                seen.pre[index], seen.post[index], gradients[index], gradients[len(views) + index]
            )


def _book(
    ledger: UnitLedger, index: int, view: LayerView, proved: Tensor
) -> tuple[Row, list[tuple[int, str]]]:
    """The ledger's cells of a layer: empty where the activation has no flat region."""
    if not view.layer.facts.flat:
        return (None,) * 6, []
    activity = view.activity
    counts, events = ledger.enter(index, activity.always_inactive, activity.finite, proved)
    cells = (counts.dead, counts.born_dead, counts.died, counts.revived, counts.certified_dead)
    return (*cells, activity.inactive_fraction), events
