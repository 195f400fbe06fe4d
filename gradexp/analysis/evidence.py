"""What a run's tables say, brought down to a bounded size that rules and figures share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradexp.analysis.decay import Array, Depth, over_depth
from gradexp.records import TABLES, RunDir

Columns = dict[str, npt.NDArray[Any]]

MAX_PROBES = 12
MAX_GRADIENT_STEPS = 24
MAX_CURVE_POINTS = 64

PROBE_COLUMNS = {
    "signal": ("pre_std", "post_std", "pre_grad_norm", "saturated_fraction"),
    "units": ("dead", "died", "revived", "inactive_fraction", "zero_grad_fraction"),
}
TABLES_READ = ("layers", "signal", "units", "gradients", "steps", "epochs")
CURVE_COLUMNS = ("loss", "accuracy", "lr", "grad_norm", "clip_coefficient")
INPUT, OUTPUT = 0, -1
# Where nan is what was measured, in the order in which it spreads within a step: table, tensor,
# column, and from which end of the net it spreads.
SPREAD: tuple[tuple[str, str, str, int], ...] = (
    ("gradients", "weight", "weight_norm", INPUT),
    ("signal", "activation", "pre_std", INPUT),
    ("signal", "activation", "post_std", INPUT),
    ("steps", "loss", "loss", INPUT),
    ("signal", "gradient", "pre_grad_norm", OUTPUT),
    ("gradients", "gradient", "grad_norm", OUTPUT),
    ("steps", "gradient", "grad_norm", INPUT),
)


@dataclass(frozen=True)
class Layers:
    """The layers of a net in order, the one nearest the input first.

    `saturates`: 1 where an activation stays within limits and has its slope around 0, else 0: what
    lies in its flat ends is lost. A rectifier is flat on one side of 0 by its nature.
    """

    layer: tuple[str, ...]
    kind: tuple[str, ...]
    activation: tuple[str, ...]
    norm: tuple[str, ...]
    units: Array
    saturates: Array

    def __len__(self) -> int:
        return len(self.layer)


@dataclass(frozen=True)
class Probes:
    """What probes saw: `step` has shape (probes,), all else (probes, layers).

    `died` and `revived` count from the first probe on, so that leaving probes out loses no event.
    A column that does not apply to a layer is nan there.
    """

    step: Array
    pre_std: Array
    post_std: Array
    pre_grad_norm: Array
    saturated_fraction: Array
    dead: Array
    died: Array
    revived: Array
    inactive_fraction: Array
    zero_grad_fraction: Array

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True)
class Gradients:
    """Training steps, evenly thinned: `step` has shape (steps,), all else (steps, layers).

    `update_ratio` is update_norm / weight_norm; nan where no update was made.
    """

    step: Array
    grad_norm: Array
    update_ratio: Array


@dataclass(frozen=True)
class Curve:
    """Training over time: means over at most 64 equal stretches, each named by its last step."""

    step: Array
    loss: Array
    accuracy: Array
    lr: Array
    grad_norm: Array
    clip_coefficient: Array


@dataclass(frozen=True)
class Totals:
    """Single figures of a run; nan where its tables do not hold them.

    `loss_quarters` are medians over the four quarters of training, `loss_error` is the standard
    error of the last of them; `train_loss` and
    `train_accuracy` are means over the last tenth of the steps, at least five. `growth` is the
    largest gradient norm over the median of the first ten steps, met at `growth_step`.
    """

    steps: int
    loss_quarters: tuple[float, ...]
    loss_error: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    growth: float
    growth_step: int


@dataclass(frozen=True)
class FirstNonFinite:
    """Where a nan or an infinity shows first; `layer` is empty for the loss."""

    step: int
    layer: str
    tensor: str


@dataclass(frozen=True)
class Evidence:
    """All that the rules look at, from the tables of one run alone.

    `added`: what probes of a user's own measured, by column, (probes, layers) as in `probes`.
    """

    layers: Layers
    probes: Probes
    depth: Depth
    gradients: Gradients
    curve: Curve
    totals: Totals
    non_finite: FirstNonFinite | None
    added: dict[str, Array]


def gather(run: RunDir) -> Evidence:
    """Read the tables of a run, however far they go, into evidence."""
    tables = {name: _columns(run, name) for name in TABLES_READ}
    layers = _layers(tables["layers"])
    probes, added = _probes(tables, len(layers))
    return Evidence(
        layers,
        probes,
        over_depth(probes.pre_grad_norm, _measured(run, tables["signal"], len(layers))),
        _gradients(tables["gradients"], len(layers)),
        _curve(tables["steps"]),
        _totals(tables["steps"], tables["epochs"]),
        _non_finite(run, tables),
        added,
    )


def _columns(run: RunDir, name: str) -> Columns:
    """A table as arrays: numbers as floats with nan for empty cells, texts as they are."""
    table = run.read(name)
    texts = {column.name for column in TABLES[name].columns if column.dtype == "text"}
    return {
        column: table[column].to_numpy(dtype=object)
        if column in texts
        else table[column].to_numpy(dtype=np.float64, na_value=np.nan)
        for column in table.columns
    }


def _layers(table: Columns) -> Layers:
    order = np.argsort(table["layer_index"])
    layer, kind, activation, norm = (
        tuple(table[name][order]) for name in ("layer", "kind", "activation", "norm")
    )
    around_zero = [not _holds_zero(text) for text in table["flat"][order]]
    saturates = (table["bounded"][order] == 1) & np.array(around_zero, dtype=bool)
    return Layers(
        layer, kind, activation, norm, table["units"][order], saturates.astype(np.float64)
    )


def _holds_zero(flat: str) -> bool:
    """Whether one of the intervals, as `layers.csv` has them, holds 0."""
    ends = [tuple(map(float, interval.split(".."))) for interval in str(flat).split()]
    return any(low <= 0 <= high for low, high in ends)


def _probes(tables: dict[str, Columns], depth: int) -> tuple[Probes, dict[str, Array]]:
    """What our probes saw, and what those of a user's own did."""
    own = {
        name: tuple(column for column in tables[name] if column not in TABLES[name].column_names)
        for name in PROBE_COLUMNS
    }
    grids = {
        name: _grid(tables[name], depth, (*columns, *own[name]))
        for name, columns in PROBE_COLUMNS.items()
    }
    steps = np.intersect1d(grids["signal"][0], grids["units"][0])
    columns = {}
    for grid_steps, values in grids.values():
        rows = np.isin(grid_steps, steps)
        columns.update({name: value[rows] for name, value in values.items()})
    columns["died"] = columns["died"].cumsum(axis=0)
    columns["revived"] = columns["revived"].cumsum(axis=0)
    kept = thin(len(steps), MAX_PROBES)
    added = {name: columns.pop(name)[kept] for names in own.values() for name in names}
    return Probes(steps[kept], **{name: one[kept] for name, one in columns.items()}), added


def _gradients(table: Columns, depth: int) -> Gradients:
    steps = np.unique(table["step"])
    rows = np.isin(table["step"], steps[thin(len(steps), MAX_GRADIENT_STEPS)])
    few = {name: column[rows] for name, column in table.items()}
    step, grid = _grid(few, depth, ("grad_norm", "update_norm", "weight_norm"))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = grid["update_norm"] / grid["weight_norm"]
    return Gradients(step, grid["grad_norm"], ratio)


def _grid(table: Columns, depth: int, names: tuple[str, ...]) -> tuple[Array, dict[str, Array]]:
    """Long rows as (steps, layers) arrays; a step whose rows are not all written is left out."""
    known = table["layer_index"] <= depth
    layer = table["layer_index"][known].astype(np.intp) - 1
    steps, row, count = np.unique(table["step"][known], return_inverse=True, return_counts=True)
    grids = {}
    for name in names:
        grid = np.full((len(steps), depth), np.nan)
        grid[row, layer] = table[name][known]
        grids[name] = grid[count == depth]
    return steps[count == depth], grids


def _curve(table: Columns) -> Curve:
    """Means over equal stretches; a stretch with a nan in it is nan, as is all that follows it."""
    count = len(table["step"])
    starts = np.linspace(0, count, min(count, MAX_CURVE_POINTS), endpoint=False).astype(np.intp)
    ends = np.append(starts[1:], count)[: len(starts)]
    means = {
        name: np.add.reduceat(table[name], starts) / (ends - starts) if count else np.empty(0)
        for name in CURVE_COLUMNS
    }
    return Curve(table["step"][ends - 1], **means)


def _totals(steps: Columns, epochs: Columns) -> Totals:
    count = len(steps["step"])
    tail = slice(-max(5, count // 10), None)
    growth, growth_step = _growth(steps["grad_norm"])
    return Totals(
        steps=count,
        loss_quarters=_quarters(steps["loss"]),
        loss_error=_median_error(steps["loss"][count - count // 4 :]),
        train_loss=_mean(steps["loss"][tail]),
        train_accuracy=_mean(steps["accuracy"][tail]),
        test_loss=_mean(epochs["test_loss"][-1:]),
        test_accuracy=_mean(epochs["test_accuracy"][-1:]),
        growth=growth,
        growth_step=growth_step,
    )


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else np.nan


def _quarters(loss: Array) -> tuple[float, ...]:
    if len(loss) < 4:  # noqa: PLR2004  four quarters need four steps
        return (np.nan,) * 4
    return tuple(float(np.median(part)) for part in np.array_split(loss, 4))


def _median_error(values: Array) -> float:
    """The standard error of a median, from the median absolute deviation: one spike is no noise."""
    if len(values) == 0:
        return np.nan
    with np.errstate(invalid="ignore"):  # an infinite loss has no deviation: nan
        deviation = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    return 1.2533 * deviation / float(np.sqrt(len(values)))


def _growth(grad_norm: Array) -> tuple[float, int]:
    """How far the gradient of all parameters rose above its start, and at which step."""
    finite = np.where(np.isfinite(grad_norm), grad_norm, 0.0)
    start = float(np.median(finite[:10])) if len(finite) else 0.0
    if start == 0:
        return np.nan, 0
    return float(finite.max()) / start, int(finite.argmax())


def _non_finite(run: RunDir, tables: dict[str, Columns]) -> FirstNonFinite | None:
    """The earliest non-finite figure; within one step in the order in which it would spread."""
    found = [
        _first_bad(tables[table], _bad_cells(run, table, column, tables), what, end)
        for table, what, column, end in SPREAD
    ]
    return min((bad for bad in found if bad), key=lambda bad: bad.step, default=None)


def _bad_cells(
    run: RunDir, table: str, column: str, tables: dict[str, Columns]
) -> npt.NDArray[np.bool_]:
    """Where something not finite was measured; a frozen layer's gradient is not measured at all."""
    values = tables[table][column]
    bad: npt.NDArray[np.bool_] = ~np.isfinite(values) & ~_empty(run, table, column, values)
    return bad


def _empty(run: RunDir, table: str, column: str, values: Array) -> npt.NDArray[np.bool_]:
    """Which of a column's values are nan since their cells are empty."""
    empty = np.zeros(len(values), dtype=np.bool_)
    if np.isnan(values).any():
        cells = run.empty_cells(table, column)[: len(values)]  # the run may have gone on meanwhile
        empty[: len(cells)] = cells
    return empty


def _measured(run: RunDir, signal: Columns, depth: int) -> npt.NDArray[np.bool_]:
    """Which layers have a gradient per example; an embedding of positions, say, has none."""
    empty = _empty(run, "signal", "pre_grad_norm", signal["pre_grad_norm"])
    return np.isin(np.arange(1, depth + 1), signal["layer_index"][~empty])


def _first_bad(
    table: Columns, bad: npt.NDArray[np.bool_], tensor: str, end: int
) -> FirstNonFinite | None:
    if not bad.any():
        return None
    step = table["step"][bad].min()
    if "layer" not in table:
        return FirstNonFinite(int(step), "", tensor)
    at_once = np.flatnonzero(bad & (table["step"] == step))
    by_layer = at_once[np.argsort(table["layer_index"][at_once])]
    return FirstNonFinite(int(step), str(table["layer"][by_layer[end]]), tensor)


def thin(count: int, at_most: int) -> npt.NDArray[np.intp]:
    """Positions of at most `at_most` of `count` items: the first, the last, evenly between."""
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).round().astype(np.intp))
