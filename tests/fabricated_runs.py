"""Run directories made by hand, with known decay, known dead units and known learning."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gradexp.analysis import HEALTHY, QUANTITIES, JudgedRun, Verdict, judge, reading
from gradexp.records import TABLES, RunDir

CLASSES = 10
# Whether an activation is bounded, and where it is flat, as `layers.csv` says it.
FACTS: dict[str, tuple[int, str]] = {
    "relu": (0, "-inf..0"),
    "relu6": (1, "-inf..0 6..inf"),
    "sigmoid": (1, ""),
    "tanh": (1, ""),
    "hardsigmoid": (1, "-inf..-3 3..inf"),
    "hardtanh": (1, "-inf..-1 1..inf"),
    "hardswish": (0, "-inf..-3"),
}
LOST: dict[str, Any] = {"loss": (2.31, 2.30), "accuracy": (0.1, 0.1)}
GOOD: dict[str, Any] = {"loss": (2.3, 0.2), "accuracy": (0.1, 0.95)}


@dataclass
class Fabricated:
    """What a fabricated run shows; the defaults are a healthy relu MLP.

    `decay` is in decades per layer toward the input; `loss` and `accuracy` are (start, end).
    `pre_grad_norm` replaces the geometric profile, shape (layers,) or (probes, layers). `columns`
    replaces whole columns, `{"steps.loss": values}`: values of shape (layers,) in `layers`,
    (steps,) in `steps`, (epochs,) in `epochs`, and (times, layers) in all other tables, or anything
    that spreads to these. None and nan are empty cells.
    """

    depth: int = 6
    units: int = 16
    activation: str = "relu"
    norm: str = "none"
    decay: float = 0.02
    probes: int = 5
    steps: int = 40
    loss: tuple[float, float] = (2.3, 0.3)
    accuracy: tuple[float, float] = (0.1, 0.9)
    dead: dict[int, list[int]] = field(default_factory=dict)  # layer_index -> dead at each probe
    saturated: float = 0.0
    update_ratio: float = 1e-3
    grad_norm_growth: float = 1.0
    pre_grad_norm: Any = None
    non_finite_from: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    status: str = "finished"
    epochs: int = 1
    columns: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> RunDir:
        """Write every table, the config and the manifest; the last layer is a readout."""
        path.mkdir(parents=True)
        run = RunDir(path)
        self._write_texts(run)
        names = [*(f"hidden.{i}" for i in range(1, self.depth)), "readout"]
        layers = list(enumerate(names, start=1))
        probe_steps = np.linspace(0, self.steps, self.probes).astype(int).tolist()
        times, depth = range(self.steps), self.depth
        self._append(run, "layers", [self._layer(i, name) for i, name in layers], (depth,))
        signal = [
            [s, i, name, 0.0, 1.0, 0.3, 0.6, self._norm(p, i), self._saturated(i)]
            for p, s in enumerate(probe_steps)
            for i, name in layers
        ]
        self._append(run, "signal", signal, (self.probes, depth))
        units = [self._units(p, s, i, n) for p, s in enumerate(probe_steps) for i, n in layers]
        self._append(run, "units", units, (self.probes, depth))
        gradients = [
            [s, i, name, *[self._grad(s, i)] * 2, None, 4.0, 4.0 * self.update_ratio]
            for s in times
            for i, name in layers
        ]
        self._append(run, "gradients", gradients, (self.steps, depth))
        self._append(run, "steps", [self._step(s) for s in times], (self.steps,))
        if self.steps:
            epochs = [self._epoch(number) for number in range(1, self.epochs + 1)]
            self._append(run, "epochs", epochs, (self.epochs,))
        return run

    def _write_texts(self, run: RunDir) -> None:
        model = {"depth": self.depth, "activation": {"name": self.activation}}
        config = {"name": "fabricated", "seed": 0, "model": model}
        run.config.write_text(yaml.safe_dump(merged(config, self.config)))
        run.write_manifest({"status": self.status, "name": "fabricated"})

    def _is_readout(self, index: int) -> bool:
        return index == self.depth

    def _layer(self, index: int, name: str) -> list[Any]:
        readout = self._is_readout(index)
        units = CLASSES if readout else self.units
        activation = "none" if readout else self.activation
        bounded, flat = FACTS.get(activation, (0, ""))
        facts = [flat, *([None] * 2 if readout else [bounded, 0.0]), 0.35]
        return [index, name, "linear", 16, 16, units, 16 * units, activation, self.norm, *facts]

    def _norm(self, probe: int, index: int) -> float:
        if self.pre_grad_norm is not None:
            profile = np.broadcast_to(self.pre_grad_norm, (self.probes, self.depth))
            return float(profile[probe, index - 1])
        return float(10 ** (-self.decay * (self.depth - index)))

    def _saturated(self, index: int) -> float | None:
        return None if self._is_readout(index) else self.saturated

    def _units(self, probe: int, step: int, index: int, name: str) -> list[Any]:
        if self._is_readout(index) or self.activation != "relu":
            units = CLASSES if self._is_readout(index) else self.units
            return [step, index, name, units, *[None] * 5, None, 0, 0.0, None]
        dead = self.dead.get(index, [0] * self.probes)
        change = dead[probe] - dead[probe - 1] if probe else 0
        events = [max(0, change), max(0, -change)]
        counts = [dead[probe], dead[0], *events, 0]
        return [step, index, name, self.units, *counts, 0.5, dead[probe], 0.0, None]

    def _grad(self, step: int, index: int) -> float:
        return self._total_grad(step) * 10 ** (-self.decay * (self.depth - index))

    def _total_grad(self, step: int) -> float:
        if self.non_finite_from is not None and step >= self.non_finite_from:
            return float("nan")
        return float(self.grad_norm_growth ** (step / max(1, self.steps - 1)))

    def _step(self, step: int) -> list[Any]:
        done = min(1.0, 2 * step / max(1, self.steps - 1))
        loss, accuracy = (a + (b - a) * done for a, b in (self.loss, self.accuracy))
        if self.non_finite_from is not None and step >= self.non_finite_from:
            loss = float("nan")
        return [step, 1, loss, accuracy, 0.1, self._total_grad(step), 1.0, 0.01]

    def _epoch(self, number: int) -> list[Any]:
        loss, accuracy = self.loss[1], self.accuracy[1]
        step = self.steps * number // self.epochs
        return [number, step, loss, accuracy, loss, accuracy - 0.02, 1.0]

    def _append(
        self, run: RunDir, table: str, rows: list[list[Any]], shape: tuple[int, ...]
    ) -> None:
        columns = TABLES[table].column_names
        for at, column in enumerate(columns):
            replaced = self.columns.get(f"{table}.{column}")
            if replaced is not None:
                values = np.broadcast_to(np.asarray(replaced), shape).ravel().tolist()
                for row, value in zip(rows, values, strict=True):
                    row[at] = value
        writer = run.writer(table)
        writer.append([dict(zip(columns, row, strict=True)) for row in rows])
        writer.close()


def read_aloud(run: RunDir) -> str:
    """The run in one line."""
    return reading(run, judge(run))


def verdicts(path: Path, **shown: Any) -> dict[str, Verdict]:
    """What is said of a fabricated run, written below `path`, by the name of the verdict."""
    return {verdict.name: verdict for verdict in judge(Fabricated(**shown).write(path / "run"))}


def a_verdict(name: str, level: Any = "critical") -> Verdict:
    """A verdict of that name and level; what else it says is of no matter."""
    return Verdict(name, level, (), (0, 1), 1.0, 1.0, "", "", "")


def judged_run(
    config: dict[str, Any], *verdicts: Verdict, status: str = "finished", **figures: float
) -> JudgedRun:
    """A run without a directory; figures that are not given are missing, no verdict is healthy."""
    missing = {quantity.name: float("nan") for quantity in QUANTITIES}
    said = verdicts or (a_verdict(HEALTHY, "note"),)
    return JudgedRun(RunDir(Path("nowhere")), status, config, missing | figures, said)


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings as one; the second wins."""
    result = dict(base)
    for key, value in more.items():
        old = result.get(key)
        result[key] = (
            merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return result
