"""What is measured at a probe: a registry of parts that say which columns they emit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gradexp.nn.observed import Observed
from gradexp.probes.activity import inactive
from gradexp.records.tables import TABLES, Column, Value
from gradexp.registry import Registry


@dataclass(frozen=True)
class Stack:
    """A batch as layers of one shape saw it, several of them in one tensor.

    Attributes:
        indices: which layers, from 0.
        layer: the first of them: their facts are the same.
        pre: [layers, n, units, ...].
        post: alike.
        pre_grad: dLoss/dpre of the summed loss, alike; None where it cannot be had.
        examples: n of the batch; a layer that is called several times has more positions.
    """

    indices: Sequence[int]
    layer: Observed
    pre: Tensor
    post: Tensor
    pre_grad: Tensor | None
    examples: int

    @cached_property
    def finite(self) -> Tensor | None:
        """Where pre is finite, bool in its shape; None where all of it surely is."""
        if self.pre.device.type == "cpu" and bool(torch.isfinite(self.pre.sum())):
            return None
        return torch.isfinite(self.pre)

    @cached_property
    def inactive(self) -> Tensor:
        """1 where pre lies in a flat interval and is finite, else 0, in the type of pre."""
        mask = inactive(self.pre, self.layer.flat)
        return mask if self.finite is None else mask.mul_(self.finite)


@dataclass(frozen=True)
class Look:
    """What is known before a probe's first batch.

    Attributes:
        step: updates done.
        layers: all layers, in forward order.
        certified: of each layer the units proved inactive for every valid input, bool [units] on
            the CPU; None where nothing can be said.
    """

    step: int
    layers: Sequence[Observed]
    certified: Sequence[Tensor | None]


class Probe:
    """Looks at batches and says one row a layer; it lives as long as the run.

    Attributes:
        table: the table its columns are in.
        columns: what it emits.
    """

    table: ClassVar[str]
    columns: Sequence[Column]

    def begin(self, look: Look) -> None:
        """A probe begins."""

    def add(self, stack: Stack) -> None:
        """Take in a batch."""
        raise NotImplementedError

    def rows(self) -> list[Mapping[str, Value]]:
        """Of each layer what the batches showed, by column; a column left out is empty."""
        raise NotImplementedError

    def state(self) -> Any:
        """What the next probe depends on, for a checkpoint."""
        return None

    def load(self, state: Any) -> None:
        """Go on from what `state` returned."""


PROBES: Registry[Callable[..., Probe]] = Registry(
    "probe", "what is measured of every layer at every probe", product=Probe
)


def added_columns() -> dict[str, list[Column]]:
    """By table, the columns that registered probes emit beyond the dictionary's own."""
    added: dict[str, list[Column]] = {}
    for entry in PROBES:
        probe = entry.make()
        own = TABLES[probe.table].column_names
        added.setdefault(probe.table, []).extend(
            column for column in probe.columns if column.name not in own
        )
    return added


Combine = Literal["mean", "max", "min", "sum"]
Measure = Callable[[Observed, Tensor, Tensor, "Tensor | None"], Tensor]
"""From a layer, its pre, post and dLoss/dpre [n, units, ...] of a batch to a 0-d tensor."""


class Measured(Probe):
    """A probe of one column in `signal.csv`, from a function of one layer and one batch."""

    table = "signal"

    def __init__(self, column: Column, measure: Measure, combine: Combine = "mean") -> None:
        self.columns = (column,)
        self._measure, self._combine = measure, combine

    def begin(self, look: Look) -> None:
        """Forget the last probe."""
        self._found: list[list[tuple[float, int]]] = [[] for _ in look.layers]

    @torch.no_grad()
    def add(self, stack: Stack) -> None:
        """Measure each layer of the batch."""
        for place, index in enumerate(stack.indices):
            grad = None if stack.pre_grad is None else stack.pre_grad[place]
            value = self._measure(stack.layer, stack.pre[place], stack.post[place], grad)
            self._found[index].append((float(value), stack.examples))

    def rows(self) -> list[Mapping[str, Value]]:
        """The batches combined, a mean by their sizes."""
        return [{self.columns[0].name: self._combined(found)} for found in self._found]

    def _combined(self, found: list[tuple[float, int]]) -> float | None:
        if not found:
            return None
        values = torch.tensor([value for value, _ in found], dtype=torch.float64)
        if self._combine == "mean":
            sizes = torch.tensor([size for _, size in found], dtype=torch.float64)
            return float((values * sizes).sum() / sizes.sum())
        return float(getattr(values, f"a{self._combine}" if self._combine != "sum" else "sum")())
