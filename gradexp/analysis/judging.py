"""Judge a run: apply rules to its evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradexp.analysis.cache import evidence_of
from gradexp.analysis.evidence import Evidence
from gradexp.analysis.learning import learning
from gradexp.analysis.rules import RULES, Rule
from gradexp.analysis.rules_file import rules_of
from gradexp.analysis.verdicts import HEALTHY, Verdict, counted, worst_first
from gradexp.records import RunDir

# A sign, and what is not said beside it, since it follows from it.
IMPLIED = {"diverged": ("stalled",)}


def judge(run: RunDir, rules: Sequence[Rule] | None = None) -> list[Verdict]:
    """The verdicts on a run, from its tables alone, worst first; at least one.

    Args:
        run: a run directory, finished or not.
        rules: the rules to apply; the run's own, with its limits, when None.
    """
    return judge_evidence(evidence_of(run), rules_of(run) if rules is None else rules)


def judge_evidence(evidence: Evidence, rules: Sequence[Rule] | None = None) -> list[Verdict]:
    """As `judge`, from evidence: of every name the worst verdict, and healthy without an alarm.

    Without rules, every registered one judges at its default limits.
    """
    chosen = [entry.factory for entry in RULES] if rules is None else rules
    found = [rule(evidence) for rule in chosen]
    worst: dict[str, Verdict] = {}
    for verdict in worst_first([verdict for verdict in found if verdict]):
        worst.setdefault(verdict.name, verdict)
    implied = {name for sign in worst for name in IMPLIED.get(sign, ())}
    told = [verdict for verdict in worst.values() if verdict.name not in implied]
    return told if any(verdict.alarm for verdict in told) else [_healthy(evidence), *told]


def _healthy(evidence: Evidence) -> Verdict:
    reached = learning(evidence)
    by_loss = np.isnan(evidence.totals.train_accuracy)
    return Verdict(
        name=HEALTHY,
        level="note",
        layers=(),
        steps=(0, evidence.totals.steps),
        figure=reached.skill,
        limit=0.0,
        unit="of the first loss" if by_loss else "of the way from chance to perfect accuracy",
        finding=f"No rule raised an alarm{_how_far(evidence, reached.skill)}.",
        advice="Nothing to do.",
    )


def _how_far(evidence: Evidence, skill: float) -> str:
    if evidence.totals.steps == 0:
        return " at initialization"
    if np.isnan(skill):
        return f" in {counted(evidence.totals.steps, 'step')}"
    if np.isnan(evidence.totals.train_accuracy):
        return f"; training removed {100 * skill:.0f} % of its first loss"
    return f"; training came {100 * skill:.0f} % of the way from chance to perfect accuracy"
