"""What happened in a run, in one line of plain words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradexp.analysis.cache import evidence_of
from gradexp.analysis.evidence import Evidence
from gradexp.analysis.learning import learning
from gradexp.analysis.verdicts import HEALTHY, Verdict
from gradexp.records import RunDir


def reading(run: RunDir, verdicts: Sequence[Verdict]) -> str:
    """One line: what was trained, how far it came, and the worst of its verdicts."""
    evidence = evidence_of(run)
    return f"{_net(evidence)} {_progress(evidence)} {_finding(evidence, verdicts[0])}"


def _net(evidence: Evidence) -> str:
    activations = [
        name
        for name in dict.fromkeys(evidence.layers.activation)
        if name not in ("none", "identity")
    ]
    kind = "/".join(activations) or "linear"
    return f"{len(evidence.layers)} layers ({kind})"


def _progress(evidence: Evidence) -> str:
    totals, reached = evidence.totals, learning(evidence)
    if totals.steps == 0:
        return "were observed at initialization."
    if evidence.non_finite:
        return f"diverged at step {evidence.non_finite.step}."
    if np.isnan(totals.train_accuracy):  # a watched loop that tells no outputs
        loss = "" if np.isnan(totals.train_loss) else f" at training loss {totals.train_loss:.3g}"
        return f"were trained for {totals.steps:,} steps{loss}."
    test = "" if np.isnan(totals.test_accuracy) else f", test {100 * totals.test_accuracy:.1f} %"
    return (
        f"reached training accuracy {100 * totals.train_accuracy:.1f} %{test} in {totals.steps:,} "
        f"steps (chance {100 / reached.classes:.3g} %)."
    )


def _finding(evidence: Evidence, worst: Verdict) -> str:
    if worst.name != HEALTHY:
        return f"{worst.name.capitalize()}: {worst.finding}"
    return f"Healthy: {_first_against_last(evidence)}"


def _first_against_last(evidence: Evidence) -> str:
    if len(evidence.probes) == 0 or len(evidence.layers) == 0:
        return "no rule raised an alarm."
    first, last = evidence.probes.pre_grad_norm[-1, [0, -1]]
    names = evidence.layers.layer
    return f"the gradient at {names[0]} is {first / last:.2g} times that at {names[-1]}."
