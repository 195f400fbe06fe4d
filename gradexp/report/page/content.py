"""What the page's script draws: the evidence of every cell, aggregated to a few kilobytes."""

from __future__ import annotations

import json
from typing import Any

from gradexp.analysis import HEALTHY, Cell, Verdict
from gradexp.analysis.verdicts import worst_first
from gradexp.report.figures import specification
from gradexp.report.figures.across import across_figures
from gradexp.report.figures.layout import Layout
from gradexp.report.figures.within import CELL_FIGURES, evidence_of_cell
from gradexp.report.overview import Overview, by_severity, value_text

MAX_BYTES = 12_000_000  # for the data of all cells' figures; what a browser opens at once


def page_content(place: Layout) -> dict[str, Any]:
    """Plain data: the figures' specifications once, the data of each cell compactly."""
    overview = place.overview
    return {
        "across": [
            {
                "title": figure.title,
                "spec": specification(figure.name, figure.chart, figure.data),
                "wide": figure.name == "gradients",
            }
            for figure in across_figures(place)
            if figure.name != "verdicts"  # the page opens with them, as buttons
        ],
        "within": {
            figure.name: {"title": figure.title, "spec": specification(figure.name, figure.chart())}
            for figure in CELL_FIGURES
        },
        "cells": _cells(overview),
        "first": min(range(len(overview.cells)), key=lambda i: by_severity(overview.cells[i])),
    }


def _cells(overview: Overview) -> list[dict[str, Any]]:
    """All cells; the sickest keep their figures while there is room for them."""
    contents = {id(cell): _cell(overview, cell) for cell in overview.cells}
    left = MAX_BYTES
    for cell in sorted(overview.cells, key=by_severity):
        figures = _figures(cell)
        left -= len(json.dumps(figures))
        if left < 0:
            break
        contents[id(cell)]["figures"] = figures
    return list(contents.values())


def _cell(overview: Overview, cell: Cell) -> dict[str, Any]:
    own = {
        key: value
        for key, value in cell.runs[0].config.items()
        if key not in overview.shared_config and key != "seed"
    }
    return {
        "label": overview.label(cell),
        "runs": [f"{run.directory.name}: {run.status}" for run in cell.runs],
        "verdicts": _verdicts(cell),
        "config": {key: value_text(value) for key, value in own.items()},
        "figures": {},
    }


def _verdicts(cell: Cell) -> list[dict[str, Any]]:
    """Per name the worst verdict of the cell's runs, and how many runs have it."""
    verdicts = worst_first([verdict for run in cell.runs for verdict in run.verdicts])
    shown: dict[str, Verdict] = {}
    for verdict in verdicts:
        shown.setdefault(verdict.name, verdict)
    return [
        {
            "name": name,
            "level": "" if name == HEALTHY else verdict.level,
            "runs": sum(any(v.name == name for v in run.verdicts) for run in cell.runs),
            "finding": verdict.finding,
            "advice": verdict.advice,
        }
        for name, verdict in shown.items()
    ]


def _figures(cell: Cell) -> dict[str, list[dict[str, Any]]]:
    evidence = evidence_of_cell(cell)
    data = {figure.name: figure.data(evidence) for figure in CELL_FIGURES}
    return {name: [grid.plain() for grid in grids] for name, grids in data.items() if grids}
