"""What is said of a run when it ends: once, from its tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradexp.analysis.diagnosis import diagnose
from gradexp.records import RunDir, write_atomically

if TYPE_CHECKING:
    from gradexp.config import Config


def conclude(run: RunDir, figures: dict[str, Any]) -> None:
    """Write `summary.json`: final figures, the reading in one line, the verdicts.

    Units and dead units are those of the last probe; dead units are null where nothing can die.
    """
    run.write_summary(figures | _units(run))  # evidence is gathered from a run with a summary
    _write_judgement(run)


def judge_again(run: RunDir, config: Config) -> None:
    """A run that has ended is judged anew where the config brings other limits than it had."""
    from gradexp.config import to_yaml

    if take_rules(run, config):
        write_atomically(run.config, to_yaml(config).encode())
        _write_judgement(run)


def take_rules(run: RunDir, config: Config) -> bool:
    """Copy the limits by which a run is judged into its directory; whether they are others."""
    wanted = Path(config.rules).read_bytes() if config.rules else None
    present = run.rules.read_bytes() if run.rules.is_file() else None
    if wanted == present:
        return False
    if wanted is None:
        run.rules.unlink()
    else:
        write_atomically(run.rules, wanted)
    return True


def _write_judgement(run: RunDir) -> None:
    said = diagnose(run)
    verdicts = [verdict.as_dict() for verdict in said.verdicts]
    run.write_summary({**run.read_summary(), "reading": said.reading, "verdicts": verdicts})


def _units(run: RunDir) -> dict[str, Any]:
    units = run.read("units")
    last = units[units["step"] == units["step"].max()]
    known = last["dead"].notna().any()
    return {
        "units": int(last["units"].sum()),
        "dead_units": int(last["dead"].sum()) if known else None,
    }
