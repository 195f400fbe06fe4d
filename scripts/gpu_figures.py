"""Figures of a GPU against the CPU's, column by column; and runs that must repeat bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from gpu_common import RANDOM, Row, Setting, config_of, nets, settings_of, watched_run

from gradexp.records import TABLES, Column, RunDir
from gradexp.train import Observer, Outcome, Progress, execute

COMPARED = ("layers", "gradients", "signal", "units", "steps", "epochs")
KEYS = ("step", "layer_index", "layer", "epoch")


@dataclass(frozen=True)
class Tolerance:
    """How far a figure may be from the CPU's, at step 0 and later.

    Attributes:
        start: at step 0.
        later: at any other.
        of: the column of the same row that both are shares of; empty for the figure itself, `1`
            for an absolute tolerance.
    """

    start: float
    later: float
    of: str = ""

    def __str__(self) -> str:
        unit = {"": "", "1": " absolute"}.get(self.of, f" of {self.of}")
        return f"{short(self.start)}, {short(self.later)}{unit}"


# Between two sets of float32 kernels of one CPU, values differ by 2e-7 at step 0 and by 1e-6 after
# 8 steps; but a unit whose pre is 0 to within rounding fires here and not there, and then gradients
# differ by up to 1e-3. Products in TF32, which must be off, show as 1e-4 and 2e-3 in values.
CLOSE, EXACT = Tolerance(1e-5, 1e-4), Tolerance(0, 0, "1")
GRADIENT = Tolerance(1e-3, 5e-3)
SHARE = Tolerance(1e-4, 5e-4, "1")
ONE_EXAMPLE = Tolerance(0, 0.02, "1")
TOLERANCES = {
    "grad_norm": GRADIENT,
    "clipped_grad_norm": GRADIENT,
    "bias_grad_norm": Tolerance(1e-3, 5e-3, "grad_norm"),  # before a norm it is rounding alone
    "update_norm": GRADIENT,
    "clip_coefficient": GRADIENT,
    "pre_grad_norm": GRADIENT,
    "pre_mean": Tolerance(1e-5, 1e-4, "pre_std"),
    "post_mean": Tolerance(1e-5, 1e-4, "post_std"),
    "saturated_fraction": SHARE,
    "inactive_fraction": SHARE,
    "zero_grad_fraction": SHARE,
    "accuracy": ONE_EXAMPLE,
    "train_accuracy": ONE_EXAMPLE,
    "test_accuracy": ONE_EXAMPLE,
}


def short(value: float) -> str:
    """One digit is enough."""
    return f"{value:.0e}" if value else "0"


def tolerance_of(column: Column) -> Tolerance:
    """Counts and words must be the same; figures are close where nothing else is said."""
    return TOLERANCES.get(column.name, CLOSE if column.dtype == "float" else EXACT)


def check_figures(setting: Setting) -> Iterator[Row]:
    """Every column of every table: the worst row of all nets, at step 0 and later."""
    pairs = dict(compared_runs(setting))
    for name in COMPARED:
        frames = {net: (one.read(name), other.read(name)) for net, (one, other) in pairs.items()}
        uneven = [net for net, (one, other) in frames.items() if len(one) != len(other)]
        if uneven:
            yield Row(f"{name}.csv", f"{uneven[0]}: another number of rows", "the same", ok=False)
            continue
        for column in TABLES[name].columns:
            if not (column.timing or column.name in KEYS):
                yield worst_of(column, frames).row(f"{name}.{column.name}")


def compared_runs(setting: Setting) -> Iterator[tuple[str, tuple[RunDir, RunDir]]]:
    """Of each net its run on the device and its run on the CPU."""
    cpu = torch.device("cpu")
    for net in nets(setting.size):
        if net != RANDOM:  # another device draws other numbers
            pair = carried_out(setting, net, "device"), carried_out(setting, net, "cpu", cpu)
            yield net, (pair[0].run, pair[1].run)
    watched = [
        watched_run(setting, one, f"watch/{i}") for i, one in enumerate((setting.device, cpu))
    ]
    yield "watch", (watched[0], watched[1])


def carried_out(
    setting: Setting,
    net: str,
    parent: str,
    device: torch.device | None = None,
    observer: Observer | None = None,
) -> Outcome:
    """That net's short run."""
    config = config_of(settings_of(setting.size, net), device or setting.device)
    return execute(config, setting.folder / net / parent, observer=observer)


class Worst:
    """The largest deviations of one column, at step 0 and later, and the row of the largest."""

    def __init__(self, tolerance: Tolerance) -> None:
        self._tolerance = tolerance
        self._start, self._later = (0.0, ""), (0.0, "")

    def note(self, net: str, rows: pd.DataFrame, distances: np.ndarray) -> None:
        """Take in a column of one net's table."""
        steps = rows["step"].to_numpy() if "step" in rows else np.zeros(len(rows), int)
        for step, layer, distance in zip(
            steps, rows.get("layer", [""] * len(rows)), distances.tolist(), strict=True
        ):
            found = distance, f"{net} {layer} step {step}"
            if step == 0:
                self._start = max(self._start, found)
            else:
                self._later = max(self._later, found)

    def row(self, what: str) -> Row:
        """Both of them against their limits."""
        (start, _), (later, _) = self._start, self._later
        ok = start <= self._tolerance.start and later <= self._tolerance.later
        largest, spot = max(self._start, self._later)
        figure = f"{short(start)}, {short(later)}" + (f" ({spot})" if largest else "")
        return Row(what, figure, str(self._tolerance), ok)


def worst_of(column: Column, frames: dict[str, tuple[pd.DataFrame, pd.DataFrame]]) -> Worst:
    """Over the tables of all nets: found and expected."""
    worst = Worst(tolerance_of(column))
    for net, (found, expected) in frames.items():
        worst.note(net, expected, deviations(column, found, expected))
    return worst


def deviations(column: Column, found: pd.DataFrame, expected: pd.DataFrame) -> np.ndarray:
    """How far each cell is from the expected one; inf where words differ, or one cell is empty."""
    if column.dtype == "text":
        return np.where(found[column.name] == expected[column.name], 0.0, np.inf)
    ours, theirs = numbers(found[column.name]), numbers(expected[column.name])
    of = tolerance_of(column).of
    measure = np.ones_like(theirs) if of == "1" else numbers(expected[of or column.name])
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = np.abs((ours - theirs) / measure)
    return np.where(same, 0.0, np.where(np.isnan(distances), np.inf, distances))


def numbers(cells: pd.Series[Any]) -> np.ndarray:
    """As floats; nan for an empty cell."""
    return cells.to_numpy(float, na_value=np.nan)


# --- repeats -------------------------------------------------------------------------------------


def check_repeats(setting: Setting) -> Iterator[Row]:
    """A second run, and one that went on from a checkpoint in the middle."""
    for net in nets(setting.size):
        first = carried_out(setting, net, "first").run
        yield same(f"{net}: again", first, carried_out(setting, net, "second").run)
        with contextlib.suppress(KeyboardInterrupt):
            carried_out(setting, net, "resumed", observer=StopAfter(setting.size.steps // 2))
        resumed = carried_out(setting, net, "resumed")
        what = f"{net}: interrupted, went on from step {resumed.resumed_from}"
        if resumed.resumed_from is None:
            yield Row(what, "it began anew", "goes on", ok=False)
        yield same(what, first, resumed.run)


class StopAfter(Observer):
    """Interrupts a run as Ctrl-C would, when more steps than that are done."""

    def __init__(self, step: int) -> None:
        self._step = step

    def progressed(self, progress: Progress) -> None:
        """A chunk has ended."""
        if progress.step > self._step:
            raise KeyboardInterrupt


def same(what: str, one: RunDir, other: RunDir) -> Row:
    """Whether two runs left the same tables, columns of times aside."""
    ours, theirs = untimed(one), untimed(other)
    for file, lines in ours.items():
        if len(lines) != len(theirs[file]):
            return Row(what, f"{file}: another number of lines", "same bytes", ok=False)
        for number, (line, their_line) in enumerate(zip(lines, theirs[file], strict=True), start=1):
            if line != their_line:
                return Row(what, f"{file}: line {number} differs", "same bytes", ok=False)
    count = sum(map(len, ours.values()))
    return Row(what, f"{count} lines in {len(ours)} files, the same", "same bytes", ok=True)


def untimed(run: RunDir) -> dict[str, list[list[bytes]]]:
    """The lines of every table, as they lie on the disk, without the cells that are times."""
    found = {}
    for table in TABLES.values():
        times = {column.name.encode() for column in table.columns if column.timing}
        lines = [line.split(b",") for line in run.table_path(table.name).read_bytes().split(b"\n")]
        kept = [index for index, name in enumerate(lines[0]) if name not in times]
        found[table.file_name] = [[line[index] for index in kept] for line in lines[:-1]]
    return found
