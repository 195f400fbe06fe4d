"""What a verdict is: a name, how bad it is, and the evidence it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["note", "warning", "critical"]
LEVELS: tuple[Level, ...] = ("note", "warning", "critical")

HEALTHY = "healthy"
# The order in which sicknesses of one level are named: what ended the run first, consequences last.
# Names that rules of a user's own give come before healthy.
VERDICTS = ("diverged", "exploding", "vanishing", "dying", "saturated", "stalled", HEALTHY)


@dataclass(frozen=True)
class Verdict:
    """One judgement on one run.

    Attributes:
        name: one of `VERDICTS`, or the word of a rule of the user's own.
        level: note (a sign without harm), warning or critical.
        layers: the layers that show it, nearest the input first; empty when it is the whole net.
        steps: the first and the last observed step that shows it.
        figure: the figure that was judged.
        limit: the limit that it passed.
        unit: of figure and limit.
        finding: one sentence that says what was seen.
        advice: one sentence that says what to do, and why.
    """

    name: str
    level: Level
    layers: tuple[str, ...]
    steps: tuple[int, int]
    figure: float
    limit: float
    unit: str
    finding: str
    advice: str

    @property
    def alarm(self) -> bool:
        """Whether it calls for action: anything above a note."""
        return self.level != "note"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def worst_first(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """By level, then in the order of `place_of`."""
    return sorted(verdicts, key=lambda v: (-LEVELS.index(v.level), *place_of(v.name)))


def place_of(name: str) -> tuple[int, str]:
    """Where a verdict stands among others: that of `VERDICTS`, new names by letter."""
    if name in VERDICTS:
        return VERDICTS.index(name), ""
    return VERDICTS.index(HEALTHY) - 1, name


def named_layers(layers: Sequence[str]) -> str:
    """Layers in words, short: `hidden.1`, `hidden.1 to hidden.24 (24 layers)`."""
    if len(layers) <= 2:  # noqa: PLR2004  two names read well side by side
        return " and ".join(layers)
    return f"{layers[0]} to {layers[-1]} ({len(layers)} layers)"


def counted(count: int, word: str) -> str:
    """A count and its word: `1 run`, `2 runs`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
