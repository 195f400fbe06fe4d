"""What is to be said of a run: the reading in one line, and the verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gradexp.analysis.judging import judge
from gradexp.analysis.reading import reading
from gradexp.analysis.rules_file import rules_of
from gradexp.analysis.verdicts import Verdict
from gradexp.records import RunDir


@dataclass(frozen=True)
class Diagnosis:
    """The reading in one line, and the verdicts, worst first; printed, it is a text to read."""

    reading: str
    verdicts: list[Verdict]

    @property
    def names(self) -> list[str]:
        """The verdicts in one word each."""
        return [verdict.name for verdict in self.verdicts]

    def __str__(self) -> str:
        lines = [
            f"{verdict.name} ({verdict.level}): {verdict.finding} {verdict.advice}"
            for verdict in self.verdicts
        ]
        return "\n".join([self.reading, *lines])


def diagnose(run: RunDir, limits: Path | None = None) -> Diagnosis:
    """A run, finished or not, judged by its rules or by the limits of a file.

    Raises:
        ConfigError: the rules file is wrong.
        RunError: a file of the run is damaged.
    """
    verdicts = judge(run, rules_of(run, limits))
    return Diagnosis(reading(run, verdicts), verdicts)
