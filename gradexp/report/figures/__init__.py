"""Figures: one specification each, for the page and for PNG, SVG and PDF."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import altair as alt

from gradexp.analysis import Cell
from gradexp.report.figures.across import Figure, across_figures
from gradexp.report.figures.grids import Grid
from gradexp.report.figures.layout import Layout
from gradexp.report.figures.theme import config
from gradexp.report.figures.within import CELL_FIGURES, evidence_of_cell
from gradexp.report.output import write_output
from gradexp.report.overview import Overview, by_severity

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
MAX_CELLS = 6
SCALE = 2  # pixels per point: sharp in print at the size of a column


def write_figures(overview: Overview, folder: Path) -> list[str]:
    """Write every figure as PNG, SVG and PDF, those of a cell into a folder of its own.

    With more than six cells only the six sickest get figures of their own. Returns what was done,
    one line each.
    """
    cells = sorted(overview.cells, key=by_severity)[:MAX_CELLS]
    figures = [(folder, figure) for figure in across_figures(Layout(overview))]
    figures += [(folder / _file_name(overview.label(c)), f) for c in cells for f in cell_figures(c)]
    for place, figure in figures:
        _write(figure, place)
    lines = [f"{len(figures)} figures as PNG, SVG and PDF: {folder}"]
    if len(overview.cells) > MAX_CELLS:
        lines.append(
            f"Figures of single cells: only the {MAX_CELLS} sickest of {len(overview.cells)}."
        )
    return lines


def cell_figures(cell: Cell) -> Iterator[Figure]:
    """The figures of one cell that it has data for."""
    evidence = evidence_of_cell(cell)
    for figure in CELL_FIGURES:
        data = figure.data(evidence)
        if data:
            yield Figure(figure.name, figure.title, figure.chart(), data)


def specification(name: str, chart: alt.TopLevelMixin, data: Sequence[Grid] = ()) -> dict[str, Any]:
    """The Vega-Lite specification of a chart; with data, complete."""
    spec: dict[str, Any] = chart.to_dict()
    spec["datasets"] = {name: list(chain.from_iterable(grid.rows() for grid in data))}
    return spec


def _write(figure: Figure, folder: Path) -> None:
    import vl_convert

    spec = specification(figure.name, figure.chart, figure.data)
    spec |= {"title": figure.title, "config": config() | {"background": "white"}}
    kinds: dict[str, Callable[[], bytes]] = {
        "png": lambda: vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, scale=SCALE),
        "svg": lambda: vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE).encode(),
        "pdf": lambda: vl_convert.vegalite_to_pdf(spec, vl_version=VEGA_LITE),
    }
    for kind, convert in kinds.items():
        write_output(folder / f"{figure.name}.{kind}", convert())


def _file_name(label: str) -> str:
    """A label as the name of a folder: letters, digits, dots and dashes only."""
    kept = "".join(letter if letter.isalnum() or letter in ".-" else " " for letter in label)
    return "-".join(kept.split()).strip(".-")
