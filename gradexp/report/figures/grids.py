"""Data of figures: values on a grid of named axes, compact enough for a page of many cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

Axes = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Grid:
    """Columns of values over every combination of the axes, the last axis running fastest.

    The page expands it in the same way as `rows`.
    """

    axes: Axes
    values: Mapping[str, Sequence[Any]]

    def rows(self) -> list[dict[str, Any]]:
        """One record per combination; combinations without any value are left out."""
        places = product(*self.axes.values())
        columns = zip(*self.values.values(), strict=True)
        return [
            dict(zip(self.axes, place, strict=True)) | dict(zip(self.values, numbers, strict=True))
            for place, numbers in zip(places, columns, strict=True)
            if any(number is not None for number in numbers)
        ]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"axes": dict(self.axes), "values": dict(self.values)}


def grid(axes: Axes, **values: Any) -> Grid:
    """A grid from arrays whose shape is that of the axes; numbers keep four digits."""
    return Grid(axes, {name: compact(array) for name, array in values.items()})


def compact(array: Any) -> list[float | None]:
    """A flat list for JSON: four significant digits, None for what is not finite."""
    return [_short(value) for value in np.asarray(array, dtype=np.float64).ravel().tolist()]


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1e6 else float(f"{value:.4g}")  # noqa: PLR2004  beyond it a power of ten is shorter
