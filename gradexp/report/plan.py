"""What a sweep planned, beside what is there."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path


def missing_runs(paths: Sequence[Path]) -> list[str]:
    """Runs that a sweep at or directly below a path has planned and that were not begun yet."""
    sweeps = dict.fromkeys(plan.parent for path in paths for plan in _plans(path))
    return [
        name
        for sweep in sweeps
        for name in _planned(sweep / "plan.csv")
        if not (sweep / "runs" / name / "manifest.json").is_file()
    ]


def _plans(path: Path) -> Iterator[Path]:
    yield from path.glob("plan.csv")
    yield from path.glob("*/plan.csv")


def _planned(plan: Path) -> Iterator[str]:
    with plan.open(newline="") as file:
        yield from (row["run"] for row in csv.DictReader(file) if row.get("run"))
