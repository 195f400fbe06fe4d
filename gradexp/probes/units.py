"""The ledger of units: which are dead, since when, and which can never fire again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradexp.nn.network import Layer

Event = tuple[int, str]
"""A unit of the layer (from 0) and what happened to it."""


def inactive(pre: Tensor, flat: tuple[tuple[float, float], ...]) -> Tensor:
    """Where the activation's derivative is exactly 0: a bool tensor of pre's shape.

    Values that are not finite are neither inactive nor active.
    """
    mask = torch.zeros_like(pre, dtype=torch.bool)
    finite = torch.finfo(pre.dtype)
    for low, high in flat:
        mask |= (pre >= max(low, finite.min)) & (pre <= min(high, finite.max))
    return mask


class Activity:
    """Over the batches of one probe: is each unit of a layer inactive on everything it saw?"""

    def __init__(self, layer: Layer) -> None:
        self._flat = layer.facts.flat
        units, device = layer.spec.outputs, layer.weight.device
        self.always_inactive = torch.ones(units, dtype=torch.bool, device=device)
        self.finite = torch.ones(units, dtype=torch.bool, device=device)
        self._inactive: Tensor | int = 0
        self._seen = 0

    def add(self, pre: Tensor) -> None:
        """Take in pre of a batch, [n, units, ...]."""
        mask = inactive(pre, self._flat)
        others = [axis for axis in range(pre.dim()) if axis != 1]
        # The least of bytes: the same as `mask.all`, which takes eighty times as long.
        self.always_inactive &= mask.view(torch.uint8).amin(dim=others).bool()
        self.finite &= torch.isfinite(pre.abs().amax(dim=others))
        self._inactive = self._inactive + mask.count_nonzero()
        self._seen += mask.numel()

    @property
    def inactive_fraction(self) -> float:
        """Share of all values seen that were inactive."""
        return float(self._inactive) / self._seen


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
