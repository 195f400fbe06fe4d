"""How long the cells of a sweep will take: from cells that are done, and from a trial of others."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, TypeAlias

from gradexp.config import Config
from gradexp.errors import RunError
from gradexp.records import DONE
from gradexp.sweeps.local import worker_environment
from gradexp.sweeps.plan import Cell
from gradexp.sweeps.table import RunRow

if TYPE_CHECKING:
    from torch import nn

CELLS, COSTS = "cells.json", "costs.json"
PATIENCE_SECONDS = 60.0

Group: TypeAlias = tuple[str, str]  # family and data set: what one fit holds for
Size: TypeAlias = tuple[float, float]  # layers, multiplications


@dataclass(frozen=True)
class Cost:
    """What a cell was seen to cost in a trial.

    Attributes:
        start: seconds beside its steps: data loaded, net built, first and last probe.
        step: seconds of a step, with its share of evaluations and of the other probes.
        per_epoch: steps of an epoch.
        spent: seconds that the trial took.
    """

    start: float
    step: float
    per_epoch: int
    spent: float


@dataclass(frozen=True)
class Estimate:
    """Wall-clock seconds of a sweep, and what they rest on."""

    seconds: float
    basis: str


def estimate(
    cells: Sequence[Cell], rows: Sequence[RunRow], left: set[str], at_once: int, threads: int
) -> Estimate:
    """How long the runs that are left will take, so many at once.

    A cell that is done but for its seed takes what that took. Another takes what a few cells tell
    whose first steps are carried out now; if cells are done whose cost the trial tells too, all
    it tells is scaled to what they took.

    Args:
        cells: the cells of the plan.
        rows: their rows, in the same order.
        left: the names of the runs to come, at least one.
        at_once: how many run at a time.
        threads: of each.

    Raises:
        RunError: a cell could not be tried.
    """
    done = _measured(cells, rows)
    waiting = [cell for cell in cells if cell.run in left]
    new = [cell for cell in waiting if _kind(cell) not in done]
    trial = Trial(new, threads) if new else None
    factor = trial.calibrated(cells, done) if trial else 1.0
    each = dict(done)
    for cell in new:
        if trial and _kind(cell) not in each:
            each[_kind(cell)] = factor * trial.seconds(cell)
    times = [each[_kind(cell)] for cell in waiting]
    starting = trial.starting if trial else 0.0
    return Estimate(starting + max(sum(times) / at_once, *times), _basis(rows, trial))


def _kind(cell: Cell) -> tuple[str, ...]:
    """What cells share that differ in their seed alone."""
    return tuple(cell.axes.values())


def _measured(cells: Sequence[Cell], rows: Sequence[RunRow]) -> dict[tuple[str, ...], float]:
    """Mean seconds of the cells of a kind that are done."""
    found: dict[tuple[str, ...], list[float]] = {}
    for cell, row in zip(cells, rows, strict=True):
        if row["status"] in DONE and row.get("seconds"):
            found.setdefault(_kind(cell), []).append(float(row["seconds"]))
    return {kind: fmean(times) for kind, times in found.items()}


def _basis(rows: Sequence[RunRow], trial: Trial | None) -> str:
    parts = []
    if done := sum(row["status"] in DONE for row in rows):
        parts.append(f"{done} cells that are done" if done > 1 else "the cell that is done")
    if trial:
        cells = "a cell" if trial.tried == 1 else f"{trial.tried} cells"
        parts.append(f"the first steps of {cells}, tried now")
    return " and ".join(parts)


class Trial:
    """The first steps of a few cells, and what they tell of all cells of their groups.

    In each group (one family on one data set) the smallest, the middle and the largest cell are
    tried, by layers and then by work: weights x positions x examples of a step. Then, with
    coefficients that are not negative, seconds = start + steps * step, where both are linear in
    layers and work.
    """

    def __init__(self, cells: Sequence[Cell], threads: int) -> None:
        self._groups: dict[Group, _Fit] = {}
        grouped: dict[Group, list[Cell]] = {}
        for cell in {_kind(cell): cell for cell in cells}.values():
            grouped.setdefault(_group(cell.config), []).append(cell)
        chosen = {group: _spread(members) for group, members in grouped.items()}
        flat = [cell for members in chosen.values() for cell in members]
        costs, self.starting = _tried(flat, threads)
        self.tried = len(flat)
        remaining = iter(costs)
        for group, members in chosen.items():
            self._groups[group] = _Fit([(cell.config, next(remaining)) for cell in members])

    def seconds(self, cell: Cell) -> float:
        """What a cell of a tried group takes."""
        return self._groups[_group(cell.config)].seconds(cell.config)

    def calibrated(self, cells: Sequence[Cell], done: Mapping[tuple[str, ...], float]) -> float:
        """How many times as long as told the cells took that are done."""
        known = {_kind(cell): cell for cell in cells if _group(cell.config) in self._groups}
        both = [kind for kind in done if kind in known]
        told = sum(self.seconds(known[kind]) for kind in both)
        return sum(done[kind] for kind in both) / told if told else 1.0


def _group(config: Config) -> Group:
    return config.model.family, config.data.dataset


def _spread(cells: Sequence[Cell]) -> list[Cell]:
    """The smallest, the middle and the largest, as far as they differ."""
    ordered = sorted(cells, key=lambda cell: _step_size(cell.config))
    return [ordered[place] for place in sorted({0, len(ordered) // 2, len(ordered) - 1})]


class _Fit:
    """Costs that were seen in one group, and those of other cells by their size."""

    def __init__(self, seen: Sequence[tuple[Config, Cost]]) -> None:
        config, cost = seen[0]
        self._examples = cost.per_epoch * config.data.batch_size
        sizes = [_size(config) for config, _ in seen]
        steps = [_step_size(config) for config, _ in seen]
        self._start = _line(sizes, [cost.start for _, cost in seen])
        self._step = _line(steps, [cost.step for _, cost in seen])

    def seconds(self, config: Config) -> float:
        """Start and steps of a cell."""
        examples = config.data.train_examples or self._examples
        per_epoch = max(1, examples // config.data.batch_size)
        steps = config.train.steps
        total = (config.train.epochs or 0) * per_epoch if steps is None else steps
        layers, multiplications = _size(config)
        step = self._step((layers, multiplications * config.data.batch_size))
        return self._start((layers, multiplications)) + total * step


def _line(sizes: Sequence[Size], seconds: Sequence[float]) -> Callable[[Size], float]:
    """The best fit in relative error, linear in both sizes, nothing in it negative."""
    import numpy as np
    from scipy.optimize import nnls

    weights = 1 / np.maximum(seconds, 1e-9)
    rows = np.array([(1.0, *size) for size in sizes])
    scale = np.maximum(rows.max(0), 1.0)  # so that no column is lost beside another
    coefficients, _ = nnls(rows / scale * weights[:, None], np.ones(len(rows)))
    return lambda size: float((np.array((1.0, *size)) / scale) @ coefficients)


def _step_size(config: Config) -> Size:
    layers, multiplications = _size(config)
    return layers, multiplications * config.data.batch_size


def _size(config: Config) -> Size:
    """Layers of the net, and the multiplications of its forward pass on one example."""
    dataset = config.data.make()
    if config.model.whole:
        return _whole_size(config.model.make()(dataset.shape, dataset.classes))
    blueprint = config.model.blueprint(dataset)
    _, height, width = dataset.shape if blueprint.spatial else (1, 1, 1)
    layers, multiplications = 1, float(blueprint.readout.fan_in * blueprint.readout.outputs)
    for block in blueprint.blocks:
        for layer in block.layers:
            height, width = math.ceil(height / layer.stride), math.ceil(width / layer.stride)
            layers += 1
            multiplications += layer.fan_in * layer.outputs * height * width
        if block.pool:
            height, width = height // 2, width // 2
    return float(layers), multiplications


def _whole_size(module: nn.Module) -> Size:
    """Of a module of anybody's making its weights, each used once: nothing else is known."""
    weights = [one for one in module.parameters() if one.dim() > 1]
    return float(len(weights)), float(sum(one.numel() for one in weights))


def _tried(cells: Sequence[Cell], threads: int) -> tuple[list[Cost], float]:
    """What each cell cost in a process of its own, and what it cost to have that process."""
    with tempfile.TemporaryDirectory() as folder:
        contents = [cell.config.model_dump(mode="json") for cell in cells]
        Path(folder, CELLS).write_text(json.dumps(contents), encoding="utf-8")
        began = time.perf_counter()
        _start(Path(folder), threads)
        spent = time.perf_counter() - began
        answer = json.loads(Path(folder, COSTS).read_text(encoding="utf-8"))
    if "error" in answer:
        raise RunError(f"cell {cells[answer['failed']]}: {answer['error']}")
    costs = [Cost(**cost) for cost in answer["costs"]]
    return costs, spent - sum(cost.spent for cost in costs)


def _start(folder: Path, threads: int) -> None:
    command = [sys.executable, "-m", "gradexp.sweeps.trial", str(folder), str(threads)]
    try:
        subprocess.run(  # noqa: S603  our own module, in this interpreter
            command,
            env={**worker_environment(threads), "TMPDIR": str(folder)},
            check=True,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
        )
    except subprocess.SubprocessError as error:
        reason = str(error).removeprefix(f"Command '{command}' ")
        raise RunError(f"the trial of some cells {reason}") from error
