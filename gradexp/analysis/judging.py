"""Judge a run: apply rules to its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from gradexp.analysis.cache import evidence_of
from gradexp.analysis.evidence import Evidence
from gradexp.analysis.learning import learning
from gradexp.analysis.rules import RULES, Rule
from gradexp.analysis.verdicts import HEALTHY, Verdict, worst_first
from gradexp.errors import ConfigError, nearest
from gradexp.records import RunDir
from gradexp.registry import Entry


def default_rules() -> list[Rule]:
    """Every registered rule at its default limits."""
    return [entry.factory for entry in RULES]


def judge(run: RunDir, rules: Sequence[Rule] | None = None) -> list[Verdict]:
    """The verdicts on a run, from its tables alone, worst first; at least one.

    Args:
        run: a run directory, finished or not.
        rules: the rules to apply; every registered one at its default limits when None.
    """
    return judge_evidence(evidence_of(run), rules)


def judge_evidence(evidence: Evidence, rules: Sequence[Rule] | None = None) -> list[Verdict]:
    """As `judge`, from evidence: of every name the worst verdict, and healthy without an alarm."""
    found = [rule(evidence) for rule in (default_rules() if rules is None else rules)]
    worst: dict[str, Verdict] = {}
    for verdict in worst_first([verdict for verdict in found if verdict]):
        worst.setdefault(verdict.name, verdict)
    if not any(verdict.alarm for verdict in worst.values()):
        return [_healthy(evidence), *worst.values()]
    return list(worst.values())


def _healthy(evidence: Evidence) -> Verdict:
    reached = learning(evidence)
    observed = evidence.totals.steps == 0
    return Verdict(
        name=HEALTHY,
        level="note",
        layers=(),
        steps=(0, evidence.totals.steps),
        figure=reached.skill,
        limit=0.0,
        unit="of the way from chance to perfect accuracy",
        finding="No rule raised an alarm at initialization."
        if observed
        else f"No rule raised an alarm; training came {100 * reached.skill:.0f} % of the way from "
        "chance to perfect accuracy.",
        advice="Nothing to do.",
    )


def load_rules(path: Path) -> list[Rule]:
    """Rules with the limits of a YAML file: `{rule: {limit: value}}`, or `{rule: false}`.

    Rules that the file does not name keep their default limits. Every mistake in the file is
    listed in one `ConfigError`.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: must map names of rules to limits, as in `dying: {{share: 0.5}}`"
        )
    limits = {str(name): options for name, options in content.items()}
    problems = [problem for name, options in limits.items() for problem in _problems(name, options)]
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return [_bound(entry, limits) for entry in RULES if limits.get(entry.name) is not False]


def _problems(name: str, options: Any) -> list[str]:
    """What is wrong with one rule's limits, in words."""
    if name not in RULES:
        near = nearest(name, RULES.names())
        return [f"'{name}' is no rule; allowed: {', '.join(RULES.names())}.{near}"]
    if options is False:
        return []
    if not isinstance(options, dict):
        return [f"{name}: must be limits such as {{share: 0.5}}, or false; got {options!r}"]
    allowed = {option.name: option.type for option in RULES[name].options}
    return [
        f"{name}.{limit}: {problem}"
        for limit, value in options.items()
        if (problem := _problem(limit, value, allowed))
    ]


def _problem(limit: str, value: Any, allowed: Mapping[str, Any]) -> str:
    from pydantic import TypeAdapter, ValidationError

    if limit not in allowed:
        return f"no such limit; allowed: {', '.join(allowed) or 'none'}.{nearest(limit, allowed)}"
    try:
        TypeAdapter(allowed[limit]).validate_python(value)
    except ValidationError as error:
        return f"{error.errors()[0]['msg']}, got {value!r}"
    return ""


def _bound(entry: Entry[Any], limits: Mapping[str, Any]) -> Rule:
    options = limits.get(entry.name, {})
    numbers = {option.name: option.type for option in entry.options}
    from pydantic import TypeAdapter

    return partial(
        entry.factory,
        **{name: TypeAdapter(numbers[name]).validate_python(v) for name, v in options.items()},
    )
