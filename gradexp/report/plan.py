"""What a sweep planned, beside what is there."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path


def missing_runs(paths: Sequence[Path]) -> list[str]:
    """Run directories named in the `plan.csv` of a sweep at a path that do not exist yet."""
    return [
        name
        for path in paths
        for name in _planned(path / "plan.csv")
        if not (path / "runs" / name / "manifest.json").is_file()
    ]


def _planned(plan: Path) -> Iterator[str]:
    if plan.is_file():
        with plan.open(newline="") as file:
            yield from (row["run"] for row in csv.DictReader(file) if row.get("run"))
