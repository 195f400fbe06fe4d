"""All that a report tells, before it is put into any form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradexp.analysis import (
    VERDICTS,
    Cell,
    Collection,
    Comparison,
    collect,
    compare,
    counted,
    degradation,
    find_axes,
    into_cells,
    own_rules,
    place_of,
    resolve_axes,
    short_names,
)
from gradexp.records import RUNNING
from gradexp.report.plan import missing_runs

SCORES = ("test_accuracy", "train_accuracy")  # what decides which cell is best, the first there is


@dataclass(frozen=True)
class Overview:
    """Runs in cells.

    Attributes:
        collection: the runs that were found.
        axes: the config keys that make the cells.
        cells: in the order of their values on the axes.
        missing: directories of runs that were planned and are not there.
    """

    collection: Collection
    axes: list[str]
    cells: list[Cell]
    missing: list[str]

    @cached_property
    def names(self) -> dict[str, str]:
        """The axes by their short names."""
        return short_names(self.axes)

    @cached_property
    def verdict_names(self) -> list[str]:
        """Every verdict there is: those of rules of a user's own are known by the rule's name."""
        given = {verdict.name for run in self.collection.runs for verdict in run.verdicts}
        return sorted({*VERDICTS, *own_rules(), *given}, key=place_of)

    @cached_property
    def degradation(self) -> list[Comparison]:
        """Deeper against shallower nets of one recipe, by training accuracy."""
        return degradation(self.collection.runs)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every axis, by training accuracy, pairs pooled over the others."""
        runs = self.collection.runs
        return [found for axis in self.axes for found in compare(runs, axis, SCORES[-1])]

    @cached_property
    def best(self) -> Cell | None:
        """The cell with the highest median accuracy on test examples, or else on training ones."""
        for score in SCORES:
            known = [c for c in self.cells if not math.isnan(c.statistics[score].median)]
            if known:
                return max(known, key=lambda cell: cell.statistics[score].median)
        return None

    @cached_property
    def shared_config(self) -> dict[str, Any]:
        """The part of the configs that all runs share."""
        first, *others = [run.config for run in self.collection.runs]
        return {
            key: value
            for key, value in first.items()
            if all(key in other and other[key] == value for other in others)
        }

    def label(self, cell: Cell) -> str:
        """A cell's values on the axes in words; the name of its run where there is no axis."""
        words = [f"{self.names[axis]} {value_text(value)}" for axis, value in cell.axes.items()]
        return ", ".join(words) or str(cell.runs[0].config.get("name", cell.runs[0].directory.name))

    def status_lines(self) -> list[str]:
        """What was found and what is missing, one thing a line."""
        runs = self.collection.runs
        statuses = [f"{count} {status}" for status, count in self.collection.by_status.items()]
        found = f"{counted(len(runs), 'run')} in {counted(len(self.cells), 'cell')}"
        lines = [f"{found}: {', '.join(statuses)}."]
        if RUNNING in self.collection.by_status:
            lines.append("Unfinished runs are reported as far as they are written.")
        if self.missing:
            missing = counted(len(self.missing), "planned run")
            lines.append(f"{missing} missing: {_some(self.missing)}.")
        lines += [f"Left out: {reason}" for reason in self.collection.unreadable]
        return lines

    def with_verdict(self, names: Sequence[str]) -> list[str]:
        """Runs with an alarm of one of these names, as `directory: verdict`."""
        return [
            f"{run.directory.name}: {verdict.name} ({verdict.level})"
            for run in self.collection.runs
            for verdict in run.verdicts
            if verdict.alarm and verdict.name in names
        ]


def overview(paths: Sequence[Path], by: Sequence[str] = (), rules: Path | None = None) -> Overview:
    """Read, judge and group the runs below the paths.

    Args:
        paths: run directories, sweep directories, or folders of them.
        by: config keys to group by, whole or by their last words; what differs when empty.
        rules: a file with limits for the rules.
    """
    collection = collect(paths, rules)
    runs = collection.runs
    axes = resolve_axes(by, runs) if by else find_axes(runs)
    return Overview(collection, axes, into_cells(runs, axes), missing_runs(paths))


def value_text(value: Any) -> str:
    """A value of an axis as it would stand in a config."""
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _some(names: Sequence[str], at_most: int = 5) -> str:
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"


def by_severity(cell: Cell) -> tuple[int, str]:
    """A sorting key: the position of the cell's verdict among all verdicts."""
    return place_of(cell.verdict)
