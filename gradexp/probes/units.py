"""The ledger of units: which are dead, since when, and which can never fire again."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradexp.nn.network import Layer
from gradexp.probes.numbers import in_rows

Event = tuple[int, str]
"""A unit of the layer (from 0) and what happened to it."""


def inactive(pre: Tensor, flat: tuple[tuple[float, float], ...]) -> Tensor:
    """1 where pre lies in a flat interval: the derivative is exactly 0; else 0, and 0 for NaN.

    In the type of pre: comparing into floats takes a quarter of the time of comparing into bools.
    """
    if not flat:
        return torch.zeros_like(pre)
    return functools.reduce(torch.maximum, [_within(pre, *interval) for interval in flat])


def _within(pre: Tensor, low: float, high: float) -> Tensor:
    """Infinite ends need no comparison."""
    if high == math.inf:
        return torch.ge(pre, low, out=torch.empty_like(pre))
    mask = torch.le(pre, high, out=torch.empty_like(pre))
    return mask if low == -math.inf else mask.mul_(pre >= low)


def counts(mask: Tensor) -> Tensor:
    """How many entries of each layer are 1, the others 0: [layers, n, ...] to int64 [layers].

    Sums of a row are exact in float32.
    """
    return in_rows(mask).sum(2).long().sum(1)


class Activity:
    """Over the batches of one probe: is each unit inactive on everything it saw?

    Attributes:
        always_inactive: bool [layers, units].
        finite: whether all of its pre was finite, bool [layers, units].
        inactive: how many values were inactive, int64 [layers].
    """

    def __init__(self, layers: int, layer: Layer) -> None:
        self._flat = layer.facts.flat
        shape, device = (layers, layer.spec.outputs), layer.weight.device
        self.always_inactive = torch.ones(shape, dtype=torch.bool, device=device)
        self.finite = torch.ones(shape, dtype=torch.bool, device=device)
        self.inactive = torch.zeros(layers, dtype=torch.int64, device=device)

    def add(self, pre: Tensor, *, surely_finite: bool) -> None:
        """Take in pre of a batch, [layers, n, units, ...]; values not finite are not inactive."""
        if not self._flat:
            return
        others = [axis for axis in range(pre.dim()) if axis not in {0, 2}]
        mask = inactive(pre, self._flat)
        if not surely_finite:
            finite = torch.isfinite(pre)
            mask.mul_(finite)
            self.finite &= finite.view(torch.uint8).amin(dim=others).bool()
        self.always_inactive &= mask.amin(dim=others).bool()
        self.inactive += counts(mask)


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
        self._records = {index: UnitRecord(**record) for index, record in state.items()}


def _events(masks: dict[str, Tensor]) -> Iterator[Event]:
    for name, mask in masks.items():
        for unit in mask.nonzero().flatten().tolist():
            yield unit, name


def empty_kernels(layer: Layer) -> int | None:
    """Depthwise kernels with an L2 norm below 1e-3 of the layer's median; None for other layers."""
    if layer.spec.kind != "depthwise":
        return None
    lengths = torch.linalg.vector_norm(layer.weight.detach().flatten(1).cpu().double(), dim=1)
    return int((lengths < 1e-3 * lengths.median()).sum())
