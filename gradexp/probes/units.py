"""The ledger of units: which are dead, since when, and which can never fire again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradexp.nn.observed import Observed
from gradexp.probes.activity import counts, others_than_units
from gradexp.probes.registry import PROBES, Look, Probe, Stack
from gradexp.records.tables import UNITS, Value

Event = tuple[int, str]
"""A unit of the layer (from 0) and what happened to it."""

EMPTY_BELOW = 1e-3


@PROBES.register("units", source="Lu et al. 2019")
def units() -> Probe:
    """Dead, born dead, died, revived and certified units; units and weights without gradient."""
    return Units()


class Units(Probe):
    """Counts of dead units, with the ledger that remembers them from probe to probe.

    Attributes:
        ledger: what is remembered.
        events: of the last probe, by layer (from 0).
    """

    table = "units"
    columns = tuple(
        column
        for column in UNITS.columns
        if column.name not in {"step", "layer_index", "layer", "zero_grad_fraction"}
    )

    def __init__(self) -> None:
        self.ledger = UnitLedger()
        self.events: dict[int, list[Event]] = {}

    def begin(self, look: Look) -> None:
        """Forget the last probe, but not the ledger."""
        self._look = look
        self._activity: dict[tuple[int, ...], Activity] = {}

    def add(self, stack: Stack) -> None:
        """Take in a batch."""
        key = tuple(stack.indices)
        if key not in self._activity:
            self._activity[key] = Activity(stack)
        self._activity[key].add(stack)

    def rows(self) -> list[Mapping[str, Value]]:
        """Book what was seen; counts of dead units are empty where nothing is flat."""
        self.events = {}
        found: list[dict[str, Value]] = [self._always(layer) for layer in self._look.layers]
        for indices, activity in self._activity.items():
            for index, seen in zip(indices, activity.seen(), strict=True):
                found[index] |= self._book(index, seen)
        return list(found)

    @staticmethod
    def _always(layer: Observed) -> dict[str, Value]:
        return {"units": layer.units, "empty_kernels": empty_kernels(layer)}

    def _book(self, index: int, seen: Seen) -> dict[str, Value]:
        row: dict[str, Value] = {"no_grad_units": seen.without_gradient}
        if not self._look.layers[index].flat:
            return row
        certified = self._look.certified[index]
        known = torch.zeros_like(seen.dead) if certified is None else certified
        booked, self.events[index] = self.ledger.enter(index + 1, seen.dead, seen.finite, known)
        row |= vars(booked) | {"inactive_fraction": seen.inactive_fraction}
        return row | ({"certified_dead": None} if certified is None else {})

    def state(self) -> Any:
        """The ledger."""
        return self.ledger.state()

    def load(self, state: Any) -> None:
        """Go on with a ledger."""
        self.ledger.load(state)


@dataclass(frozen=True)
class Seen:
    """What a probe has seen of one layer's units.

    Attributes:
        dead: inactive on everything, bool [units] on the CPU.
        finite: all of pre was finite, alike.
        inactive_fraction: share of all values that were inactive.
        without_gradient: units whose dLoss/dpre was exactly 0 on everything; None where it is not
            known.
    """

    dead: Tensor
    finite: Tensor
    inactive_fraction: float
    without_gradient: int | None


class Activity:
    """Over the batches of one probe, for layers of one shape: is each unit ever active?"""

    def __init__(self, stack: Stack) -> None:
        shape, device = (stack.pre.shape[0], stack.pre.shape[2]), stack.pre.device
        self._always_inactive = torch.ones(shape, dtype=torch.bool, device=device)
        self._finite = torch.ones(shape, dtype=torch.bool, device=device)
        self._untouched: Tensor | None = torch.ones(shape, dtype=torch.bool, device=device)
        self._inactive = torch.zeros(len(stack.indices), dtype=torch.int64, device=device)
        self._values = 0

    def add(self, stack: Stack) -> None:
        """Take in a batch; values that are not finite are not inactive."""
        self._values += stack.pre[0].numel()
        others = others_than_units(stack.pre)
        if stack.pre_grad is None:
            self._untouched = None
        elif self._untouched is not None:
            self._untouched &= stack.pre_grad.abs().amax(dim=others) == 0
        if not stack.layer.flat:
            return
        mask = stack.inactive
        if stack.finite is not None:
            self._finite &= stack.finite.view(torch.uint8).amin(dim=others).bool()
        self._always_inactive &= mask.amin(dim=others).bool()
        self._inactive += counts(mask)

    def seen(self) -> list[Seen]:
        """What was seen of each layer."""
        none = [None] * len(self._inactive)
        untouched = none if self._untouched is None else self._untouched.sum(1).tolist()
        shares = [count / self._values for count in self._inactive.tolist()]
        return [
            Seen(*one)
            for one in zip(
                self._always_inactive.cpu(), self._finite.cpu(), shares, untouched, strict=True
            )
        ]


@dataclass
class UnitRecord:
    """What is remembered of a layer's units from probe to probe; bool [units] each, on the CPU."""

    born_dead: Tensor
    dead: Tensor
    certified: Tensor


@dataclass(frozen=True)
class UnitCounts:
    """A layer's row in the ledger."""

    dead: int
    born_dead: int
    died: int
    revived: int
    certified_dead: int


class UnitLedger:
    """The state of every unit that can die, one record per layer with a flat activation."""

    def __init__(self) -> None:
        self._records: dict[int, UnitRecord] = {}

    def enter(
        self, index: int, dead: Tensor, finite: Tensor, certified: Tensor
    ) -> tuple[UnitCounts, list[Event]]:
        """Book the state of layer `index` at this probe; returns its counts and events.

        A unit with non-finite pre keeps the state it had: it is neither dead nor alive.
        """
        dead, finite, certified = dead.cpu(), finite.cpu(), certified.cpu()
        record = self._records.get(index)
        if record is None:
            record = UnitRecord(dead, torch.zeros_like(dead), torch.zeros_like(dead))
            died, born = torch.zeros_like(dead), dead
        else:
            died, born = dead & ~record.dead, torch.zeros_like(dead)
        revived = record.dead & ~dead & finite
        newly_certified = certified & ~record.certified
        self._records[index] = UnitRecord(
            record.born_dead, (record.dead | dead) & ~revived, record.certified | certified
        )
        counts = UnitCounts(
            int(dead.sum()),
            int(record.born_dead.sum()),
            int(died.sum()),
            int(revived.sum()),
            int(certified.sum()),
        )
        masks = {"born_dead": born, "died": died, "revived": revived, "certified": newly_certified}
        return counts, list(_events(masks))

    def state(self) -> dict[int, Any]:
        """For a checkpoint."""
        return {index: vars(record).copy() for index, record in self._records.items()}

    def load(self, state: dict[int, Any]) -> None:
        """Go on from what `state` returned."""
        self._records = {
            index: UnitRecord(**{name: units.cpu() for name, units in record.items()})
            for index, record in state.items()
        }


def _events(masks: dict[str, Tensor]) -> Iterator[Event]:
    for name, mask in masks.items():
        for unit in mask.nonzero().flatten().tolist():
            yield unit, name


def empty_kernels(layer: Observed) -> int | None:
    """Depthwise kernels with an L2 norm below 1e-3 of the layer's median; None for other layers."""
    if layer.kind != "depthwise" or len(layer.weights) > 1:
        return None
    weight = layer.weights[0].detach()
    lengths = torch.linalg.vector_norm(weight.flatten(1).cpu().double(), dim=1)
    return int((lengths < EMPTY_BELOW * lengths.quantile(0.5)).sum())
