"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from rich.console import Group, JustifyMethod, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gradexp.analysis import (
    HEALTHY,
    Array,
    Cell,
    Evidence,
    JudgedRun,
    Verdict,
    evidence_of,
    reading,
)
from gradexp.records import RunDir
from gradexp.report.overview import Overview
from gradexp.report.rows import LEGEND, TextTable, comparison_rows, overview_rows
from gradexp.report.words import MISSING, number, number_if_any, whole

STYLES = {"note": "dim", "warning": "yellow", "critical": "bold red"}


def run_table(run: RunDir) -> RenderableType:
    """The per-layer table of one run, the layer nearest the input first; fits 80 columns."""
    evidence = evidence_of(run)
    table = _plain_table()
    table.add_column("layer", overflow="fold")
    table.add_column("units", justify="right")
    steps = (
        [f"step {step:.0f}" for step in evidence.gradients.step[[0, -1]]]
        if _trained(evidence)
        else ["", ""]
    )
    for heading in (
        f"|grad|\n{steps[0]}",
        f"|grad|\n{steps[1]}",
        "grad x\nper layer",
        "dead\nfirst",
        "dead\nlast",
        "update\n/weight",
        *_added(evidence),
    ):
        table.add_column(heading, justify="right", overflow="fold")
    for row in zip(*_columns(evidence), strict=True):
        table.add_row(*row)
    return Group(table, Text(RUN_LEGEND, style="dim"))


RUN_LEGEND = (
    "|grad|: L2 norm of dLoss/dWeight. grad x per layer: pre_grad_norm over that of\n"
    "the next layer, at the last probe. dead: units at the first and last probe.\n"
    "update/weight: norm of an update over that of the weights, median over steps."
)


def _plain_table() -> Table:
    return Table(box=None, pad_edge=False, header_style="bold")


def _trained(evidence: Evidence) -> bool:
    return len(evidence.gradients.step) > 0


def _columns(evidence: Evidence) -> list[list[str]]:
    layers, gradients = evidence.layers, evidence.gradients
    none = [MISSING] * len(layers)
    grads = (
        [list(map(number, gradients.grad_norm[at])) for at in (0, -1)]
        if _trained(evidence)
        else [none] * 2
    )
    dead = (
        [list(map(whole, evidence.probes.dead[at])) for at in (0, -1)]
        if len(evidence.probes)
        else [none] * 2
    )
    return [
        list(layers.layer),
        list(map(whole, layers.units)),
        *grads,
        list(map(number_if_any, _change_per_layer(evidence))),
        *dead,
        list(map(number_if_any, _median_over_steps(gradients.update_ratio))),
        *(list(map(number_if_any, values)) for values in _added(evidence).values()),
    ]


def _added(evidence: Evidence) -> dict[str, Array]:
    """What probes of a user's own saw last, by column."""
    return {name: values[-1] for name, values in evidence.added.items() if len(values)}


def _change_per_layer(evidence: Evidence) -> Array:
    """pre_grad_norm at the last probe, over that of the next layer; nan for the last one."""
    if len(evidence.probes) == 0:
        return np.full(len(evidence.layers), np.nan)
    norms = evidence.probes.pre_grad_norm[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.append(norms[:-1] / norms[1:], np.nan)


def _median_over_steps(values: Array) -> list[float]:
    return [
        float(np.median(column[~np.isnan(column)])) if not np.isnan(column).all() else np.nan
        for column in values.T
    ]


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts on one run, worst first: what was found and what to do."""
    table = _plain_table()
    table.show_header = False
    table.add_column("verdict")
    table.add_column("finding", overflow="fold")
    for verdict in verdicts:
        name = f"[{STYLES[verdict.level]}]{verdict.name}[/]\n[dim]{verdict.level}[/]"
        table.add_row(name, f"{escape(verdict.finding)}\n[dim]{escape(verdict.advice)}[/]")
    return table


def run_diagnosis(run: JudgedRun) -> RenderableType:
    """All that is to be said of one run: its layers, the reading in one line, its verdicts."""
    return Group(
        run_table(run.directory),
        Text(f"\n{reading(run.directory, run.verdicts)}\n"),
        verdict_table(run.verdicts),
    )


def overview_table(overview: Overview) -> RenderableType:
    """Every cell with its statistics and verdict, then what depth did to training accuracy."""
    text = overview_rows(overview)
    styles = [_style(overview, cell) for cell in overview.cells]
    parts: list[RenderableType] = [_styled(text, styles), Text(LEGEND, style="dim")]
    if overview.degradation:
        title = "\nDoes a deeper net train worse? Training accuracy, paired by seed:"
        parts += [Text(title, style="bold"), _styled(comparison_rows(overview.degradation))]
    return Group(*parts)


def _style(overview: Overview, cell: Cell) -> str:
    if cell is overview.best:
        return "bold green"
    return "" if cell.verdict == HEALTHY else STYLES[cell.level]


def _styled(text: TextTable, styles: Sequence[str] = ()) -> Table:
    table = _plain_table()
    for (name, unit), words in zip(text.headings, text.words, strict=True):
        justify: JustifyMethod = "left" if words else "right"
        heading = (
            f"{name}\n{unit}" if words else "\n".join([*name.split(), unit.replace(" / ", "\n/ ")])
        )
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=not words)
    for row, style in zip_longest(text.rows, styles, fillvalue=""):
        table.add_row(*map(escape, row), style=str(style))
    return table
