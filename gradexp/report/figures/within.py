"""Figures of one cell: where its gradients go, what its units do, how it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np

from gradexp.analysis import Array, Cell, Evidence
from gradexp.analysis.evidence import thin
from gradexp.report.figures import charts
from gradexp.report.figures.grids import Axes, Grid, grid

MAX_RUNS = 5
MAX_PROFILES = 5
MAX_MAP_STEPS = 16
MAX_MAP_LAYERS = 48
MAX_DEAD_LAYERS = 8
MAX_CURVE_POINTS = 40
NOTICEABLE = 0.99  # a coefficient below it changes an update


@dataclass(frozen=True)
class CellFigure:
    """A figure of one cell.

    Attributes:
        name: of the figure, of its files and of its data.
        title: what it shows, in a few words.
        chart: the specification, on named data.
        data: the data from the runs of a cell; nothing where the figure would be empty.
    """

    name: str
    title: str
    chart: Callable[[], alt.TopLevelMixin]
    data: Callable[[Sequence[Evidence]], list[Grid]]


def evidence_of_cell(cell: Cell) -> list[Evidence]:
    """The evidence of the first few runs of a cell that have the same layers as its first one."""
    found = [run.evidence() for run in cell.runs[:MAX_RUNS]]
    return [evidence for evidence in found if evidence.layers.layer == found[0].layers.layer]


def _profile(runs: Sequence[Evidence]) -> list[Grid]:
    runs = _same([run.probes.step for run in runs], runs)
    steps = runs[0].probes.step
    kept = thin(len(steps), MAX_PROFILES)
    norms = [run.probes.pre_grad_norm[kept] for run in runs]
    zero = np.median(norms, axis=0) == 0
    positive = [np.where(norm > 0, norm, np.nan) for norm in norms]
    axes: Axes = {"step": _whole(steps[kept]), "layer": runs[0].layers.layer}
    return [grid(axes, **band(positive), zero=np.where(zero, 1.0, np.nan))] if len(kept) else []


def _map(runs: Sequence[Evidence]) -> list[Grid]:
    runs = _same([run.gradients.step for run in runs], runs)
    steps = runs[0].gradients.step
    at, layers = thin(len(steps), MAX_MAP_STEPS), thin(len(runs[0].layers), MAX_MAP_LAYERS)
    norms = np.median([run.gradients.grad_norm for run in runs], axis=0)[np.ix_(at, layers)]
    log = np.log10(norms, out=np.full(norms.shape, np.nan), where=np.isfinite(norms) & (norms > 0))
    axes: Axes = {"step": _whole(steps[at]), "layer": [runs[0].layers.layer[i] for i in layers]}
    bad = np.where(norms == 0, 1.0, np.where(np.isfinite(norms), np.nan, 2.0))
    return [grid(axes, log=log, bad=bad)] if len(at) else []


def _dead(runs: Sequence[Evidence]) -> list[Grid]:
    probes, layers = runs[0].probes, runs[0].layers
    if len(probes) == 0:
        return []
    ever = np.nan_to_num(probes.dead).max(axis=0)
    worst = np.sort(np.argsort(-ever, kind="stable")[:MAX_DEAD_LAYERS])
    shown = [int(i) for i in worst if ever[i] > 0]
    if not shown:
        return []
    axes: Axes = {"step": _whole(probes.step), "layer": [layers.layer[i] for i in shown]}
    born = np.broadcast_to(probes.dead[0], probes.dead.shape)
    counts = {"born dead": born, "died since": probes.died, "revived": -probes.revived}
    values = {name: count[:, shown] for name, count in counts.items()}
    return [grid(axes, index=np.broadcast_to(shown, born[:, shown].shape), **values)]


def _updates(runs: Sequence[Evidence]) -> list[Grid]:
    runs = _same([run.gradients.step for run in runs], runs)
    ratios = np.concatenate([run.gradients.update_ratio for run in runs])
    ratios = np.where(ratios > 0, ratios, np.nan)
    if np.isnan(ratios).all():
        return []
    return [grid({"layer": runs[0].layers.layer}, **band(list(ratios)))]


def _curve(column: str) -> Callable[[Sequence[Evidence]], list[Grid]]:
    def data(runs: Sequence[Evidence]) -> list[Grid]:
        runs = _same([run.curve.step for run in runs], runs)
        steps = runs[0].curve.step
        kept = thin(len(steps), MAX_CURVE_POINTS)
        values = [getattr(run.curve, column)[kept] for run in runs]
        return [grid({"step": _whole(steps[kept])}, **band(values))] if len(steps) else []

    return data


def _clip(runs: Sequence[Evidence]) -> list[Grid]:
    """Empty where nothing was ever clipped."""
    clipped = any((run.curve.clip_coefficient < NOTICEABLE).any() for run in runs)
    return _curve("clip_coefficient")(runs) if clipped else []


def _same(steps: Sequence[Array], runs: Sequence[Evidence]) -> list[Evidence]:
    """The runs that were observed at the same steps as the first one."""
    return [run for step, run in zip(steps, runs, strict=True) if np.array_equal(step, steps[0])]


def band(arrays: Sequence[Array]) -> dict[str, Array]:
    """Median, lowest and highest of what is finite over the first axis; nan where nothing is."""
    stack = np.stack(arrays)
    stack = np.where(np.isfinite(stack), stack, np.nan)
    known = ~np.isnan(stack).all(axis=0)
    band = {}
    for name, reduce in (("median", np.nanmedian), ("low", np.nanmin), ("high", np.nanmax)):
        band[name] = np.full(stack.shape[1:], np.nan)
        band[name][known] = reduce(stack[:, known], axis=0)
    return band


def _whole(steps: Array) -> list[int]:
    return [int(step) for step in steps]


CELL_FIGURES = (
    CellFigure("profile", "Gradient over depth", charts.profile, _profile),
    CellFigure("map", "Gradient over depth and time", charts.layer_step_map, _map),
    CellFigure("dead", "Dead units over time", charts.dead, _dead),
    CellFigure("updates", "Size of an update", charts.updates, _updates),
    CellFigure("loss", "Training loss", charts.loss, _curve("loss")),
    CellFigure("accuracy", "Training accuracy", charts.accuracy, _curve("accuracy")),
    CellFigure("clip_coefficient", "Clipping", charts.clip_coefficient, _clip),
)
