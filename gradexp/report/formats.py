"""The overview as text for other programs: CSV, JSON, Markdown, LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from gradexp.analysis import QUANTITIES, Cell
from gradexp.report.overview import Overview
from gradexp.report.rows import LEGEND, TextTable, overview_rows

STATISTICS = ("median", "q1", "q3", "low", "high")


def as_csv(overview: Overview) -> str:
    """One row a cell; per quantity its count, median, quartiles and 95 % interval, unrounded."""
    records = [_record(overview, cell) for cell in overview.cells]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _record(overview: Overview, cell: Cell) -> dict[str, Any]:
    record: dict[str, Any] = dict(cell.axes) or {"name": overview.label(cell)}
    record |= {"runs": len(cell.runs), "verdict": cell.verdict, "level": cell.level}
    record["verdict_runs"] = cell.verdicts[cell.verdict]
    for quantity in QUANTITIES:
        statistic = cell.statistics[quantity.name]
        record[f"{quantity.name}_count"] = statistic.count
        for name in STATISTICS:
            record[f"{quantity.name}_{name}"] = _empty_for_nan(getattr(statistic, name))
    return record


def _empty_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def as_json(overview: Overview) -> str:
    """Cells with statistics, runs with all verdicts, degradation and comparisons."""
    content = {
        "status": overview.collection.by_status,
        "missing": overview.missing,
        "unreadable": overview.collection.unreadable,
        "units": {quantity.name: quantity.unit for quantity in QUANTITIES},
        "cells": [
            {
                "axes": cell.axes,
                "runs": [run.directory.name for run in cell.runs],
                "verdicts": cell.verdicts,
                "statistics": {name: asdict(stat) for name, stat in cell.statistics.items()},
            }
            for cell in overview.cells
        ],
        "runs": {
            str(run.directory.path): [verdict.as_dict() for verdict in run.verdicts]
            for run in overview.collection.runs
        },
        "degradation": [asdict(found) for found in overview.degradation],
        "comparisons": [asdict(found) for found in overview.comparisons],
    }
    return json.dumps(_jsonable(content), indent=2) + "\n"


def _jsonable(value: Any) -> Any:
    """Missing numbers as null, infinite ones as text: JSON has neither."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def as_markdown(overview: Overview) -> str:
    """A pipe table with a legend below."""
    table = overview_rows(overview)
    heads = [f"{name} ({unit})" if unit else name for name, unit in table.headings]
    rule = [":--" if words else "--:" for words in table.words]
    lines = [heads, rule, *table.rows]
    text = "\n".join("| " + " | ".join(map(_markdown, line)) + " |" for line in lines)
    return f"{text}\n\n{_markdown(LEGEND)}\n"


def _markdown(text: str) -> str:
    for mark in "\\|*_<`[":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def as_latex(overview: Overview) -> str:
    """A `tabular` for the booktabs package."""
    table: TextTable = overview_rows(overview)
    heads = [f"{name} ({unit})" if unit else name for name, unit in table.headings]
    columns = "".join("l" if words else "r" for words in table.words)
    body = [" & ".join(map(_latex, row)) + r" \\" for row in table.rows]
    head = " & ".join(map(_latex, heads)) + r" \\"
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {LEGEND}"]) + "\n"


LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "\n": " ",
}


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


FORMATS: dict[str, Callable[[Overview], str]] = {
    "csv": as_csv,
    "markdown": as_markdown,
    "json": as_json,
    "latex": as_latex,
}
