"""The overview as a table of text: what terminal, Markdown and LaTeX show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradexp.analysis import QUANTITY, Cell, Comparison, Statistic
from gradexp.report.overview import Overview, value_text
from gradexp.report.words import MISSING, number

SHOWN = ("decay", "dead_fraction", "train_accuracy", "test_accuracy")
MARKS = {"note": "", "warning": "!", "critical": "!!"}
BEST = "*"
LEGEND = (
    "Median over n seeds, ± half the width of its bootstrap 95 % interval. decay: decades of "
    "pre_grad_norm lost per layer toward the input, at the last probe; negative where it grows. "
    f"{BEST} best accuracy, ! warning, !! critical."
)


@dataclass(frozen=True)
class TextTable:
    """Headings (a name and a unit each), rows of text, and which columns hold words."""

    headings: list[tuple[str, str]]
    rows: list[list[str]]
    words: list[bool]


def overview_rows(overview: Overview) -> TextTable:
    """One row a cell: its axes, its number of runs, quantities that some cell has, its verdict."""
    shown = [
        name
        for name in SHOWN
        if any(not math.isnan(cell.statistics[name].median) for cell in overview.cells)
    ]
    headings = [(overview.names[axis], "") for axis in overview.axes] or [("run", "")]
    headings += [("n", ""), *(_heading(name) for name in shown), ("verdict", "")]
    rows = [
        [
            *_axis_texts(overview, cell),
            str(len(cell.runs)),
            *(statistic_text(cell.statistics[name], QUANTITY[name].unit) for name in shown),
            _verdict_text(cell) + (f" {BEST}" if cell is overview.best else ""),
        ]
        for cell in overview.cells
    ]
    words = [
        heading in overview.names.values() or heading in ("run", "verdict")
        for heading, _ in headings
    ]
    return TextTable(headings, rows, words)


def _axis_texts(overview: Overview, cell: Cell) -> list[str]:
    return [value_text(value) for value in cell.axes.values()] or [overview.label(cell)]


def _heading(name: str) -> tuple[str, str]:
    quantity = QUANTITY[name]
    return quantity.title, "%" if quantity.unit == "fraction" else quantity.unit


def statistic_text(statistic: Statistic, unit: str) -> str:
    """The median with its uncertainty; shares in percent."""
    if statistic.count == 0:
        return MISSING
    half = (statistic.high - statistic.low) / 2
    if unit == "fraction":
        return f"{100 * statistic.median:.1f}" + ("" if math.isnan(half) else f" ±{100 * half:.1f}")
    return f"{statistic.median:.2f}" + ("" if math.isnan(half) else f" ±{half:.2f}")


def _verdict_text(cell: Cell) -> str:
    count = cell.verdicts[cell.verdict]
    share = "" if count == len(cell.runs) else f" {count}/{len(cell.runs)}"
    return f"{cell.verdict}{share} {MARKS[cell.level]}".rstrip()


def comparison_rows(comparisons: Sequence[Comparison]) -> TextTable:
    """One row a comparison, with what can be concluded from it."""
    headings = [
        ("of", ""),
        ("first", ""),
        ("second", ""),
        ("difference", "% points"),
        ("effect", "-1 to 1"),
        ("pairs", ""),
        ("p", "Holm"),
        ("conclusion", ""),
    ]
    rows = [
        [
            ", ".join(c.recipe.values()) or c.axis,
            value_text(c.first),
            value_text(c.second),
            f"{100 * c.difference:+.1f}",
            f"{c.effect:+.2f}",
            str(c.pairs),
            number(c.p),
            conclusion(c),
        ]
        for c in comparisons
    ]
    return TextTable(headings, rows, [True, True, True, False, False, False, False, True])


def conclusion(comparison: Comparison) -> str:
    """What a comparison says: a direction, no difference found, or too few seeds to tell."""
    if comparison.significant:
        return "second is better" if comparison.difference > 0 else "second is worse"
    if not comparison.decidable:
        return f"needs {comparison.pairs_needed} pairs"
    return "no difference shown"
