"""How figures look: quiet, readable in print, safe for colour-blind readers."""

from __future__ import annotations

from typing import Any

from gradexp.analysis import QUANTITY
from gradexp.records import TABLES

# Okabe and Ito 2008: distinguishable under every common form of colour blindness. Blue is a
# little lighter than theirs, so that lines read on a dark page too.
BLUE, VERMILION, GREEN, SKY, ORANGE, PURPLE = (
    "#2f86c9",
    "#d55e00",
    "#009e73",
    "#56b4e9",
    "#e69f00",
    "#cc79a7",
)
VERDICT_COLORS = {  # light enough for dark text on them
    "diverged": "#e8998d",
    "exploding": "#f2a65e",
    "vanishing": "#8fbfe0",
    "dying": "#d9b3d6",
    "saturated": "#f0e08a",
    "stalled": "#c4c4c4",
    "healthy": "#a5d6b7",
}
OTHER_VERDICT = "#e3d5c5"  # of a rule of the user's own
ORDERED = "viridis"  # perceptually even, also in grey
FONT = "Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif"


def config(*, ink: str = "#1a1a1a", faint: str = "#dddddd") -> dict[str, Any]:
    """The Vega-Lite config of every figure; the page puts in the colours of its theme."""
    text = {
        "labelColor": ink,
        "titleColor": ink,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    }
    lines = {"gridColor": faint, "gridOpacity": 0.6, "domainColor": faint, "tickColor": faint}
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "title": {"color": ink, "anchor": "start", "fontSize": 14, "offset": 12},
        "axis": text | lines | {"titlePadding": 8},
        "legend": text | {"titleLimit": 400, "symbolOpacity": 1},
        "header": text | {"labelFontSize": 12},
        "line": {"strokeWidth": 2},
    }


def column_title(table: str, column: str, words: str = "") -> str:
    """An axis title from the data dictionary: words, or the column's name, and its unit."""
    unit = TABLES[table].column(column).unit
    return _with_unit(words or column.replace("_", " "), unit)


def quantity_title(name: str) -> str:
    """An axis title for a quantity; shares are shown in percent."""
    quantity = QUANTITY[name]
    return _with_unit(quantity.title, "%" if quantity.unit == "fraction" else quantity.unit)


def _with_unit(words: str, unit: str) -> str:
    return f"{words} ({unit})" if unit else words
