"""Where cells stand in figures and on the page: one axis to the right, all others down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from gradexp.analysis import Cell
from gradexp.analysis.cells import in_order
from gradexp.report.overview import Overview, value_text

DEPTH = "model.depth"


@dataclass(frozen=True)
class Layout:
    """The places of an overview's cells."""

    overview: Overview

    @cached_property
    def across(self) -> str | None:
        """The axis that runs to the right: depth, or the one with the most numbers, or the last.

        None where there are fewer than two axes and the only one is words: it runs down.
        """
        axes = self.overview.axes
        if DEPTH in axes:
            return DEPTH
        numbers = {axis: self._numbers(axis) for axis in axes}
        if any(numbers.values()):
            return max(axes, key=lambda axis: numbers[axis])
        return axes[-1] if len(axes) > 1 else None

    def _numbers(self, axis: str) -> int:
        """How many values an axis has when all are numbers, else 0."""
        values = {cell.axes[axis] for cell in self.overview.cells}
        return len(values) if all(in_order(value)[0] == 0 for value in values) else 0

    @property
    def title(self) -> str:
        """What stands below the horizontal axis."""
        return self.overview.names[self.across] if self.across else ""

    def column(self, cell: Cell) -> str:
        """The place of a cell from left to right."""
        return value_text(cell.axes[self.across]) if self.across else "all"

    def row(self, cell: Cell) -> str:
        """The place of a cell from top to bottom."""
        others = [value_text(value) for axis, value in cell.axes.items() if axis != self.across]
        return " · ".join(others) or ("all" if self.across else self.overview.label(cell))

    @cached_property
    def columns(self) -> list[str]:
        """All columns, by the order of their values."""
        across = self.across
        if across is None:
            return ["all"]
        values = {cell.axes[across] for cell in self.overview.cells}
        return [value_text(value) for value in sorted(values, key=in_order)]

    @cached_property
    def rows(self) -> list[str]:
        """All rows, in the order of the cells."""
        return list(dict.fromkeys(self.row(cell) for cell in self.overview.cells))
