"""A sweep made by hand whose every shown number can be computed on paper, and what is drawn of it.

Units are 10 a layer, so that a dead unit of a net of four layers (three of them hidden) is a
thirtieth; accuracies, decays and losses are round. With two or three runs the bootstrap interval of
a median reaches from the lowest to the highest value, so half of it is half their distance.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import vl_convert

from gradexp.records import RunDir
from gradexp.report import make_report
from tests.fabricated_runs import GOOD, LOST, Fabricated, merged

ODD = "x_50% & a|b"  # a part with a name that Markdown, LaTeX and file names must escape
UNTOUCHED = f"{ODD}-12-1"  # a planned run that was not begun
NOTHING_YET = "begun"  # a run that has observed nothing

Row = dict[str, Any]


def scored(train: float, test: float) -> Row:
    """A run that ends at these accuracies, and well below the loss of a constant guess."""
    return {"accuracy": (0.1, train), "loss": (2.3, 1.5), "columns": {"epochs.test_accuracy": test}}


def _lost(test: float, **more: Any) -> Row:
    return {**LOST, "columns": {"epochs.test_accuracy": test}, **more}


# (activation, depth) -> what is particular to each seed.
SWEEP: dict[tuple[str, int], list[Row]] = {
    ("relu", 4): [
        {**scored(0.80, 0.70), "decay": 0.0, "dead": {2: [0, 5, 6]}},
        {**scored(0.90, 0.85), "decay": 0.1, "dead": {2: [0, 6, 6]}},
        {**scored(0.94, 0.90), "decay": 0.2, "dead": {2: [4, 10, 9]}},
    ],
    ("relu", 12): [
        _lost(0.10, decay=0.3),
        _lost(0.10, decay=0.4),
        {**scored(0.95, 0.90), "decay": 0.1},
    ],
    ("tanh", 4): [{**scored(0.99, 0.80), "decay": 0.0, "saturated": 0.6}],
    ("tanh", 12): [
        {**scored(0.40, 0.30), "decay": 0.0, "saturated": 0.6},
        {**scored(0.50, 0.40), "decay": 0.0, "saturated": 0.7},
    ],
    (ODD, 4): [
        _lost(math.nan, decay=-0.2, non_finite_from=5, status="diverged", activation="tanh"),
        _lost(0.30, decay=-0.4, accuracy=(0.1, 0.3), activation="tanh"),
    ],
    (ODD, 12): [_lost(math.nan, probes=0, accuracy=(0.1, 0.2), status="failed", activation="tanh")],
}


def write_sweep(path: Path) -> Path:
    """Twelve runs in six cells, one run that observed nothing, one that was not begun."""
    for (activation, depth), seeds in SWEEP.items():
        for seed, shown in enumerate(seeds):
            run = path / "runs" / f"{activation}-{depth}-{seed}"
            config = {"seed": seed, "model": {"activation": {"name": activation}}}
            small = {"activation": activation, "steps": 20, "probes": 3, "units": 10}
            Fabricated(**{**small, "depth": depth, "config": config, **shown}).write(run)
    nothing = RunDir(path / "runs" / NOTHING_YET)
    nothing.path.mkdir()
    nothing.config.write_text("name: begun\n")
    nothing.write_manifest({"status": "running", "name": "begun"})
    runs = [run.name for run in sorted((path / "runs").iterdir())]
    lines = [f'"{name}",4' for name in [*runs, UNTOUCHED]]
    (path / "plan.csv").write_text("\n".join(["run,model.depth", *lines]) + "\n")
    return path


def write_runs(path: Path, *runs: Row, **shared: Any) -> Path:
    """Runs `0`, `1`, ... of a net of two layers that learns, each with what is its own."""
    small = {"depth": 2, "steps": 12, "probes": 2, "units": 10, **GOOD}
    for number, own in enumerate(runs):
        config = merged(shared.get("config", {}), own.get("config", {}))
        Fabricated(**{**small, **shared, **own, "config": config}).write(path / str(number))
    return path


def drawn(
    monkeypatch: pytest.MonkeyPatch, path: Path, folder: Path, **options: Any
) -> dict[str, Any]:
    """Every figure of the runs below a path as it is handed to the converter, by its file."""

    def as_text(spec: dict[str, Any], **_: Any) -> str:
        return json.dumps(spec)

    def as_bytes(spec: dict[str, Any], **_: Any) -> bytes:
        return json.dumps(spec).encode()

    monkeypatch.setattr(vl_convert, "vegalite_to_svg", as_text)
    for name in ("vegalite_to_png", "vegalite_to_pdf"):
        monkeypatch.setattr(vl_convert, name, as_bytes)
    make_report([path], figures=folder, **options)
    found = sorted(folder.rglob("*.svg"))
    return {
        str(file.relative_to(folder).with_suffix("")): json.loads(file.read_text())
        for file in found
    }
