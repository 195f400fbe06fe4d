"""Is one value of an axis better than another? Paired by seed, with the care that takes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from gradexp.analysis.cells import NO_AXIS, find_axes, hashable, in_order
from gradexp.analysis.collection import JudgedRun
from gradexp.analysis.decay import Array

Recipe = tuple[tuple[str, str], ...]
PairedValues = dict[tuple[Recipe, Any], dict[Any, float]]

SIGNIFICANT = 0.05
ALL_PAIRS_UP_TO = 6  # values of an axis; beyond it only neighbours are compared
TIE_DIGITS = 9
RESAMPLES = 9999
DEPTH = "model.depth"


@dataclass(frozen=True)
class Comparison:
    """Two values of an axis under otherwise equal configs and seeds.

    Attributes:
        axis: the config key.
        first: one value.
        second: the other.
        recipe: config keys in which recipes differ; empty when pairs of several are pooled.
        quantity: the name of what is compared.
        pairs: number of pairs of runs.
        difference: median over the pairs of second - first.
        effect: matched-pairs rank-biserial correlation, from -1 (second always lower) to 1
            (Kerby 2014).
        p: of the paired permutation test, adjusted for all comparisons made together (Holm 1979).
        smallest_p: what p would be at best, with this many pairs and comparisons.
    """

    axis: str
    first: Any
    second: Any
    recipe: dict[str, Any]
    quantity: str
    pairs: int
    difference: float
    effect: float
    p: float
    smallest_p: float

    @property
    def significant(self) -> bool:
        """Whether chance is an unlikely reason for the difference."""
        return self.p <= SIGNIFICANT

    @property
    def decidable(self) -> bool:
        """Whether this many pairs could have shown a difference at all."""
        return self.smallest_p <= SIGNIFICANT

    @property
    def pairs_needed(self) -> int:
        """How many pairs would make it decidable: each one more halves the smallest p."""
        return self.pairs + max(0, math.ceil(math.log2(self.smallest_p / SIGNIFICANT)))


def compare(runs: Sequence[JudgedRun], axis: str, quantity: str) -> list[Comparison]:
    """Every two values of an axis, pairs pooled over all recipes; two-sided.

    Pairs share everything but the axis. `difference` is second - first.
    """
    pairs = _by_recipe_and_seed(runs, axis, quantity)
    return holm(_unadjusted(pairs, axis, quantity, _couples(_values(pairs)), "two-sided"))


def degradation(
    runs: Sequence[JudgedRun], axis: str = DEPTH, quantity: str = "train_accuracy"
) -> list[Comparison]:
    """Whether a deeper net *trains* worse than the next shallower one; one-sided.

    Training accuracy, not test accuracy, so that overfitting is not mistaken for it (He et al.
    2016). Pairs share the recipe and the seed; `difference` is deeper - shallower. Each recipe is a
    question of its own: p is adjusted for the comparisons within it.
    """
    by_recipe: dict[Recipe, PairedValues] = defaultdict(dict)
    for (recipe, seed), values in _by_recipe_and_seed(runs, axis, quantity).items():
        by_recipe[recipe][recipe, seed] = values
    shown = [key for key in find_axes(runs) if key != axis]
    found = []
    for recipe, pairs in by_recipe.items():
        own = {key: value for key, value in recipe if key in shown}
        steps = pairwise(_values(pairs))
        found += [
            replace(comparison, recipe=own)
            for comparison in holm(_unadjusted(pairs, axis, quantity, steps, "less"))
        ]
    return found


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons, with p adjusted for their number (Holm 1979)."""
    order = np.argsort([comparison.p for comparison in comparisons])
    adjusted = [1.0] * len(comparisons)
    highest = 0.0
    for rank, at in enumerate(order):
        highest = max(highest, comparisons[at].p * (len(comparisons) - rank))
        adjusted[at] = min(1.0, highest)
    return [
        replace(comparison, p=p, smallest_p=comparison.smallest_p * len(comparisons))
        for comparison, p in zip(comparisons, adjusted, strict=True)
    ]


def _by_recipe_and_seed(runs: Sequence[JudgedRun], axis: str, quantity: str) -> PairedValues:
    """The quantity of every run, by recipe and seed, then by the run's value on the axis."""
    values: PairedValues = defaultdict(dict)
    for run in runs:
        if axis in run.config and not math.isnan(run.figures[quantity]):
            key = (_recipe(run, axis), run.seed)
            values[key][hashable(run.config[axis])] = run.figures[quantity]
    return values


def _recipe(run: JudgedRun, axis: str) -> Recipe:
    """All of a config but the axis, options of the axis' parts and what a recipe leaves open."""
    return tuple(
        (key, str(value))
        for key, value in run.config.items()
        if key not in NO_AXIS and key != axis and not key.startswith(f"{axis}.")
    )


def _values(pairs: PairedValues) -> list[Any]:
    return sorted({value for of_pair in pairs.values() for value in of_pair}, key=in_order)


def _couples(values: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return combinations(values, 2) if len(values) <= ALL_PAIRS_UP_TO else pairwise(values)


def _unadjusted(
    pairs: PairedValues,
    axis: str,
    quantity: str,
    couples: Iterable[tuple[Any, Any]],
    alternative: str,
) -> list[Comparison]:
    found = []
    for first, second in couples:
        both = [of[second] - of[first] for of in pairs.values() if first in of and second in of]
        if both:
            tested = _test(np.array(both), alternative)
            found.append(Comparison(axis, first, second, {}, quantity, len(both), *tested))
    return found


def _test(differences: Array, alternative: str) -> tuple[float, float, float, float]:
    """Median difference, effect, p and smallest possible p of a paired permutation test.

    Differences that are equal but for rounding are made so: ties count on both sides.
    """
    unit = np.abs(differences).max() or 1.0
    if np.isfinite(unit):
        differences = np.round(differences / unit, TIE_DIGITS) * unit
    sides = 2 if alternative == "two-sided" else 1
    smallest = max(sides / 2 ** len(differences), sides / (RESAMPLES + 1))
    p = _permuted(differences, alternative)
    return float(np.median(differences)), _rank_biserial(differences), p, min(1.0, smallest)


def _permuted(differences: Array, alternative: str) -> float:
    """Under chance alone the sign of every difference could as well be the other one."""
    from scipy.stats import permutation_test

    if len(differences) == 1:  # which says nothing
        return 1.0
    return float(
        permutation_test(
            (differences,),
            lambda sample, axis: np.mean(sample, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            alternative=alternative,
            rng=np.random.default_rng(0),
        ).pvalue
    )


def _rank_biserial(differences: Array) -> float:
    """The share of rank sums in favour of the second value, less the share against it."""
    from scipy.stats import rankdata

    ranks = rankdata(np.abs(differences))
    return float(np.sum(ranks * np.sign(differences)) / np.sum(ranks))
