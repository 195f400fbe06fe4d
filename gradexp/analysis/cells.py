"""Cells: runs that share everything but the seed, with statistics over their seeds."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradexp.analysis.collection import JudgedRun
from gradexp.analysis.decay import Array
from gradexp.analysis.quantities import QUANTITIES
from gradexp.analysis.verdicts import LEVELS, Level, place_of
from gradexp.errors import ConfigError, nearest

NO_AXIS = ("name", "seed", "device", "rules")  # keys in which runs of one cell may differ
RESAMPLES = 1999
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Statistic:
    """One quantity over the runs of a cell that have it.

    `low` and `high` are the bootstrap 95 % interval of the median (percentile method, Efron 1979);
    nan with fewer than two runs.
    """

    count: int
    median: float
    q1: float
    q3: float
    low: float
    high: float


NOTHING = Statistic(0, *(math.nan,) * 5)


@dataclass(frozen=True)
class Cell:
    """Runs with the same value on every axis."""

    axes: dict[str, Any]
    runs: tuple[JudgedRun, ...]
    statistics: dict[str, Statistic]

    @property
    def verdicts(self) -> dict[str, int]:
        """How many runs have which worst verdict, the most frequent first."""
        counts = Counter(run.verdict.name for run in self.runs)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], place_of(item[0]))))

    @property
    def verdict(self) -> str:
        """The most frequent worst verdict of its runs; of equals the more severe."""
        return next(iter(self.verdicts))

    @property
    def level(self) -> Level:
        """The highest level at which a run has that verdict."""
        levels = [run.verdict.level for run in self.runs if run.verdict.name == self.verdict]
        return max(levels, key=LEVELS.index)


def find_axes(runs: Sequence[JudgedRun]) -> list[str]:
    """The config keys that differ between runs, in the order of the config.

    An option of a part that is an axis itself (`model.activation.negative_slope`) is left out when
    the part's name says it all.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in NO_AXIS)
    different = [key for key in keys if len({repr(run.config.get(key)) for run in runs}) > 1]
    return [
        key
        for key in different
        if not any(key.startswith(f"{part}.") and _follows(runs, key, part) for part in different)
    ]


def _follows(runs: Sequence[JudgedRun], key: str, part: str) -> bool:
    """Whether the value at `part` tells the value at `key`."""
    values = defaultdict(set)
    for run in runs:
        values[repr(run.config.get(part))].add(repr(run.config.get(key)))
    return all(len(found) == 1 for found in values.values())


def resolve_axes(words: Iterable[str], runs: Sequence[JudgedRun]) -> list[str]:
    """Config keys from what a user wrote: `depth` stands for `model.depth`.

    Raises:
        ConfigError: a word is no key of any run's config, or the end of several.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    return [_resolve(word, keys) for word in words]


def _resolve(word: str, keys: Sequence[str]) -> str:
    if word in keys:
        return word
    matches = [key for key in keys if key.endswith(f".{word}")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(f"--by {word}: could be any of {', '.join(matches)}; give the whole key")
    raise ConfigError(
        f"--by {word}: no run has this key in its config."
        f"{nearest(word, [*keys, *(key.rpartition('.')[2] for key in keys)])}"
    )


def short_names(axes: Sequence[str]) -> dict[str, str]:
    """For every axis the shortest end of its key that no other axis shares."""
    names = {}
    for axis in axes:
        parts = axis.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        names[axis] = next(
            end
            for end in ends
            if end == axis or not any(o != axis and f".{o}".endswith(f".{end}") for o in axes)
        )
    return names


def into_cells(runs: Sequence[JudgedRun], axes: Sequence[str]) -> list[Cell]:
    """Runs grouped by their values on the axes, in the order of these values."""
    groups: dict[tuple[Any, ...], list[JudgedRun]] = defaultdict(list)
    for run in runs:
        groups[tuple(hashable(run.config.get(axis)) for axis in axes)].append(run)
    keys = sorted(groups, key=lambda key: [in_order(value) for value in key])
    statistics = _statistics([groups[key] for key in keys])
    return [
        Cell(dict(zip(axes, key, strict=True)), tuple(groups[key]), of_cell)
        for key, of_cell in zip(keys, statistics, strict=True)
    ]


def in_order(value: Any) -> tuple[int, float, str]:
    """A sorting key for values of an axis: numbers by size, then words, then nothing."""
    if value is None:
        return (2, 0.0, "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (0, float(value), "")
    return (1, 0.0, str(value))


def hashable(value: Any) -> Any:
    """A value of an axis as a key: a list as its text."""
    return str(value) if isinstance(value, list) else value


def _statistics(groups: Sequence[Sequence[JudgedRun]]) -> list[dict[str, Statistic]]:
    """Every quantity of every group; groups with equally many values are handled at once."""
    result: list[dict[str, Statistic]] = [{} for _ in groups]
    for quantity in QUANTITIES:
        by_count: dict[int, list[tuple[int, list[float]]]] = defaultdict(list)
        for at, group in enumerate(groups):
            values = [run.figures[quantity.name] for run in group]
            known = [value for value in values if not math.isnan(value)]
            by_count[len(known)].append((at, known))
        for count, members in by_count.items():
            values_of = np.array([known for _, known in members])
            for (at, _), statistic in zip(members, summarize(values_of), strict=True):
                result[at][quantity.name] = statistic if count else NOTHING
    return result


def summarize(values: Array) -> list[Statistic]:
    """Median, quartiles and bootstrap interval of every row of `values`, shape (rows, seeds).

    Quartiles are values that were observed, so that they exist beside infinite ones.
    """
    rows, count = values.shape
    if count == 0:
        return [NOTHING] * rows
    median = np.median(values, axis=1)
    q1, q3 = np.quantile(values, (0.25, 0.75), axis=1, method="nearest")
    low, high = np.full((2, rows), np.nan)
    finite = np.isfinite(values).all(axis=1)
    if count > 1 and finite.any():
        low[finite], high[finite] = _median_interval(values[finite])
    columns = (median, q1, q3, low, high)
    return [Statistic(count, *row) for row in np.stack(columns, axis=1).tolist()]


def _median_interval(values: Array) -> tuple[Array, Array]:
    from scipy.stats import bootstrap

    interval = bootstrap(
        (values,),
        np.median,
        axis=1,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        batch=max(1, 2_000_000 // values.size),  # bounds the memory of the resamples
        rng=np.random.default_rng(0),
    ).confidence_interval
    return interval.low, interval.high
