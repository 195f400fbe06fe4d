"""The ledger of units: which are dead, since when, and which can never fire again."""

from __future__ import annotations

import functools
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
    if not flat:
        return torch.zeros_like(pre, dtype=torch.bool)
    finite = torch.finfo(pre.dtype)
    masks = [(pre >= max(low, finite.min)) & (pre <= min(high, finite.max)) for low, high in flat]
    return functools.reduce(torch.logical_or, masks)


def counts(mask: Tensor) -> Tensor:
    """How many values of each layer are true: [layers, n, ...] to int64 [layers]."""
    return mask.flatten(2).sum(2, dtype=torch.int32).sum(1)


class Activity:
    """Over the batches of one probe: is each unit inactive on everything it saw?

    Attributes:
        always_inactive: bool [layers, units].
        finite: whether all of its pre was finite, bool [layers, units].
    """

    def __init__(self, layers: int, layer: Layer) -> None:
        self._flat = layer.facts.flat
        shape, device = (layers, layer.spec.outputs), layer.weight.device
        self.always_inactive = torch.ones(shape, dtype=torch.bool, device=device)
        self.finite = torch.ones(shape, dtype=torch.bool, device=device)
        self._inactive = torch.zeros(layers, dtype=torch.int64, device=device)
        self._seen = 0

    def add(self, pre: Tensor) -> None:
        """Take in pre of a batch, [layers, n, units, ...]."""
        if not self._flat:
            return
        mask = inactive(pre, self._flat)
        others = [axis for axis in range(pre.dim()) if axis not in {0, 2}]
        # The least of bytes: the same as `mask.all`, which takes eighty times as long.
        self.always_inactive &= mask.view(torch.uint8).amin(dim=others).bool()
        self.finite &= torch.isfinite(pre.abs().amax(dim=others))
        self._inactive += counts(mask)
        self._seen += mask[0].numel()

    def inactive_fractions(self) -> list[float]:
        """Of each layer, the share of all values seen that were inactive."""
        fractions: list[float] = (self._inactive.cpu().double() / max(1, self._seen)).tolist()
        return fractions


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
