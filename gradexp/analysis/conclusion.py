"""What is said of a run when it ends: once, from its tables."""

from __future__ import annotations

from typing import Any

from gradexp.analysis.judging import judge
from gradexp.analysis.reading import reading
from gradexp.records import RunDir


def conclude(run: RunDir, figures: dict[str, Any]) -> None:
    """Write `summary.json`: final figures, the reading in one line, the verdicts.

    Units and dead units are those of the last probe; dead units are null where nothing can die.
    """
    run.write_summary(figures | _units(run))  # evidence is gathered from a run with a summary
    run.write_summary(
        {
            **run.read_summary(),
            "reading": reading(run),
            "verdicts": [verdict.as_dict() for verdict in judge(run)],
        }
    )


def _units(run: RunDir) -> dict[str, Any]:
    units = run.read("units")
    last = units[units["step"] == units["step"].max()]
    known = last["dead"].notna().any()
    return {
        "units": int(last["units"].sum()),
        "dead_units": int(last["dead"].sum()) if known else None,
    }
