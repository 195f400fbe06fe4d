"""Figures across cells: what each choice does to verdicts, gradients, units and accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from gradexp.analysis import QUANTITY, Cell
from gradexp.report.figures.charts import log_axis
from gradexp.report.figures.grids import Grid, grid
from gradexp.report.figures.layout import Layout
from gradexp.report.figures.theme import (
    ORDERED,
    OTHER_VERDICT,
    VERDICT_COLORS,
    column_title,
    quantity_title,
)
from gradexp.report.figures.within import band as band_over
from gradexp.report.figures.within import evidence_of_cell

BOX_WIDTH, BOX_HEIGHT = 76, 34
GAP = 0.04
CORNERS = 3
PANEL_WIDTH, PANEL_HEIGHT = 230, 180
MAX_PANELS = 9
DARK_TEXT, LIGHT_TEXT = "#1a1a1a", "#ffffff"


@dataclass(frozen=True)
class Figure:
    """A figure across cells: its specification, on data of its own name, and that data."""

    name: str
    title: str
    chart: alt.TopLevelMixin
    data: list[Grid]


@dataclass(frozen=True)
class Shade:
    """How a quantity becomes a colour, and where the colour needs light text.

    `scale` is for altair, `light` a Vega expression on `value`, `digits` a number format.
    """

    scale: dict[str, Any]
    light: str
    digits: str


SHADES = {
    "decay": Shade({"scheme": "purpleorange", "reverse": True}, "abs(value) > 0.6 * bound", ".2f"),
    "train_accuracy": Shade({"scheme": ORDERED, "domain": [0, 100]}, "value < 55", ".1f"),
    "test_accuracy": Shade({"scheme": ORDERED, "domain": [0, 100]}, "value < 55", ".1f"),
    "dead_fraction": Shade({"scheme": "greys", "domain": [0, 100]}, "value > 50", ".1f"),
}


def across_figures(place: Layout) -> list[Figure]:
    """Every figure that these cells have data for."""
    verdicts = _verdicts(place)
    figures = [Figure("verdicts", "Verdicts", _verdict_boxes(place, verdicts), verdicts)]
    for name in SHADES:
        if boxes := _boxes(place, name):
            title = QUANTITY[name].title.capitalize()
            figures.append(Figure(name, title, _heat_map(place, name, boxes), boxes))
    if profiles := _profiles(place):
        figures.append(Figure("gradients", "Gradient over depth", _gradients(place), profiles))
    return figures


def _at(place: Layout, cell: Cell) -> dict[str, list[str]]:
    return {"row": [place.row(cell)], "column": [place.column(cell)]}


def _verdicts(place: Layout) -> list[Grid]:
    return [Grid(_at(place, cell), {"verdict": [cell.verdict]}) for cell in place.overview.cells]


def _boxes(place: Layout, name: str) -> list[Grid]:
    """One box per cell that has the quantity; shares in percent."""
    percent = 100 if QUANTITY[name].unit == "fraction" else 1
    medians = [(cell, percent * cell.statistics[name].median) for cell in place.overview.cells]
    return [grid(_at(place, cell), value=[value]) for cell, value in medians if np.isfinite(value)]


def _box_chart(place: Layout, name: str, data: list[Grid]) -> alt.Chart:
    """The two axes on which boxes stand: every column, and the rows that have a box."""
    filled = {box.axes["row"][0] for box in data}
    shown = [row for row in place.rows if row in filled]
    down = alt.Axis(labelLimit=260, domain=False, ticks=False)
    right = alt.Axis(labelLimit=BOX_WIDTH, labelAngle=0, domain=False, ticks=False)
    columns = alt.Scale(domain=place.columns, padding=GAP)
    rows = alt.Scale(domain=shown, padding=GAP)
    return (
        alt.Chart(alt.NamedData(name))
        .encode(
            x=alt.X("column:O", scale=columns, title=place.title or None, axis=right),
            y=alt.Y("row:O", scale=rows, title=None, axis=down),
        )
        .properties(width=BOX_WIDTH * len(place.columns), height=BOX_HEIGHT * len(shown))
    )


def _verdict_boxes(place: Layout, values: list[Grid]) -> alt.LayerChart:
    """A box per cell in the colour of its verdict, with its name."""
    names = place.overview.verdict_names
    colors = [VERDICT_COLORS.get(name, OTHER_VERDICT) for name in names]
    scale = alt.Scale(domain=names, range=colors)
    base = _box_chart(place, "verdicts", values)
    boxes = base.mark_rect(cornerRadius=CORNERS).encode(
        color=alt.Color("verdict:N", scale=scale, legend=None),
        tooltip=["row:O", "column:O", "verdict:N"],
    )
    return alt.layer(boxes, base.mark_text(color=DARK_TEXT).encode(text="verdict:N"))


def _heat_map(place: Layout, name: str, values: list[Grid]) -> alt.LayerChart:
    """A box per cell, shaded by the median of a quantity, with its figure."""
    shade = SHADES[name]
    bound = max(0.1, *(abs(box.values["value"][0]) for box in values))
    scale = alt.Scale(**({"domain": [-bound, bound]} | shade.scale))
    legend = alt.Legend(orient="top", gradientLength=max(120, BOX_WIDTH * len(place.columns)))
    light = shade.light.replace("value", "datum.value").replace("bound", str(bound))
    base = _box_chart(place, name, values)
    boxes = base.mark_rect(cornerRadius=CORNERS).encode(
        color=alt.Color("value:Q", scale=scale, title=quantity_title(name), legend=legend),
        tooltip=["row:O", "column:O", alt.Tooltip("value:Q", format=".4g")],
    )
    text = base.mark_text(fontSize=12).encode(
        text=alt.Text("value:Q", format=shade.digits),
        color=alt.condition(light, alt.value(LIGHT_TEXT), alt.value(DARK_TEXT)),
    )
    return alt.layer(boxes, text)


def _profiles(place: Layout) -> list[Grid]:
    """pre_grad_norm at the last probe of every cell in the rows that are shown."""
    shown = place.rows[:MAX_PANELS]
    grids = []
    for cell in place.overview.cells:
        if place.row(cell) not in shown:
            continue
        norms = [run.probes.pre_grad_norm[-1] for run in evidence_of_cell(cell) if len(run.probes)]
        if norms:
            layers = list(range(1, len(norms[0]) + 1))
            positive = [np.where(norm > 0, norm, np.nan) for norm in norms]
            grids.append(grid({**_at(place, cell), "layer_index": layers}, **band_over(positive)))
    return grids


def _gradients(place: Layout) -> alt.FacetChart:
    """Gradient norm against the layer: a line per cell, with the range over its seeds."""
    title = column_title("signal", "pre_grad_norm", "gradient before the activation")
    x = alt.X(
        "layer_index:Q",
        title="layer (1 = nearest the input)",
        scale=alt.Scale(nice=False, zero=False),
        axis=alt.Axis(tickMinStep=1, format="d", labelOverlap="greedy"),
    )
    scale = alt.Scale(scheme=ORDERED, domain=place.columns)
    color = alt.Color("column:O", scale=scale, title=place.title or None)
    base = alt.Chart().encode(x=x, color=color)
    tooltip = ["row:O", "column:O", "layer_index:Q", alt.Tooltip("median:Q", format=".3~e")]
    band = base.mark_area(opacity=0.2).encode(y=log_axis("low", title), y2="high:Q")
    line = base.mark_line(point={"size": 15})
    line = line.encode(y=log_axis("median", title), tooltip=tooltip)
    panel = alt.layer(band, line).properties(width=PANEL_WIDTH, height=PANEL_HEIGHT)
    return panel.facet(
        facet=alt.Facet("row:N", sort=place.rows, title=None),
        columns=2 if len(place.rows) in (2, 4) else 3,
        data=alt.NamedData("gradients"),
    )
