"""How a run ended: what its summary and its manifest say of it, whoever made its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gradexp.probes.nonfinite import NonFinite
from gradexp.records import DIVERGED, FINISHED


@dataclass(frozen=True)
class Ending:
    """The end of a run.

    Attributes:
        probe_examples: how many a probe looked at; None without probes.
        first: the first value that was not finite, anywhere.
        diverged: the first one of the step whose loss was not finite.
    """

    probe_examples: int | None
    first: NonFinite | None
    diverged: NonFinite | None

    def figures(self) -> dict[str, Any]:
        """For `summary.json`.

        The rule of three: a unit that fired on none of n examples fires, with 95 % confidence, on
        fewer than 3 / n of all.
        """
        examples = self.probe_examples
        return {
            "probe_examples": examples,
            "dead_unit_fires_on_less_than": 3 / examples if examples else None,
            "nonfinite": self.first.as_dict() if self.first else None,
            "diverged": self.diverged.as_dict() if self.diverged else None,
        }

    def status(self, done: str) -> dict[str, str]:
        """For the manifest; `done` says in words how far it came."""
        return {
            "status": DIVERGED if self.diverged else FINISHED,
            "outcome": f"{done}; {self.first.sentence()}" if self.first else done,
        }
