"""By what a run is judged: the shipped rules and its own, with the limits of its rules file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gradexp.analysis.rules import RULES, Rule
from gradexp.errors import ConfigError, RunError, nearest
from gradexp.imports import MODULES, import_file, module_name
from gradexp.records import RunDir
from gradexp.registry import Entry

RuleEntry = Entry[Callable[..., Any]]


def rules_of(run: RunDir, limits: Path | None = None) -> list[Rule]:
    """The rules by which a run is judged, whoever asks.

    Args:
        run: its manifest names the rules of its own, its rules file holds their limits.
        limits: a rules file to take instead of the run's.

    Raises:
        ConfigError: a rules file is wrong.
        RunError: a rule of its own is not registered, nor by the files that it imported.
    """
    file = limits or (run.rules if run.rules.is_file() else None)
    names = dict.fromkeys([*_everywhere(), *_own(run)])
    entries = [RULES[name] for name in names]
    return [entry.factory for entry in entries] if file is None else _limited(entries, file)


def load_rules(path: Path) -> list[Rule]:
    """Every registered rule with the limits of a YAML file: `{rule: {limit: value}}`.

    `{rule: false}` leaves one out. Rules that the file does not name keep their default limits.
    Every mistake in the file is listed in one `ConfigError`, with its line.
    """
    return _limited(list(RULES), path)


def own_rules(imports: Iterable[Path] = ()) -> list[str]:
    """The names of the rules beside the shipped ones that judge a run which imports these files."""
    modules = {module_name(path) for path in imports}
    own = [entry.name for entry in RULES if entry.factory.__module__ in modules]
    return own + [name for name in _everywhere() if not _is_shipped(RULES[name])]


def _everywhere() -> list[str]:
    """The rules that judge every run: not those that other runs of this process imported."""
    return [entry.name for entry in RULES if not entry.factory.__module__.startswith(MODULES)]


def _is_shipped(entry: RuleEntry) -> bool:
    return entry.factory.__module__.split(".")[0] == "gradexp"


def _own(run: RunDir) -> list[str]:
    """The rules that its manifest names; its copies of what it imported bring them, if need be."""
    manifest = run.read_manifest() if run.manifest.is_file() else {}
    names: list[str] = manifest.get("own_rules", [])
    if any(name not in RULES for name in names):
        for file in manifest.get("imports", {}):
            import_file(run.path / file, str(run.config))
    missing = [name for name in names if name not in RULES]
    if missing:
        raise RunError(
            f"{run.path}: is judged by the rule '{missing[0]}', which is not registered here; "
            "name its file in the config's `imports:`"
        )
    return names


def _limited(entries: Sequence[RuleEntry], path: Path) -> list[Rule]:
    from gradexp.config import read_yaml

    source = read_yaml(path)
    known = {entry.name: entry for entry in entries}
    problems = [
        f"{source.origin(key)}  {'.'.join(key)}: {problem}"
        for name, options in source.data.items()
        for key, problem in _problems(name, options, known)
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return [
        _bound(entry, source.data.get(entry.name) or {})
        for entry in entries
        if source.data.get(entry.name) is not False
    ]


def _problems(
    name: str, options: Any, known: Mapping[str, RuleEntry]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong with one rule's limits: where, and in words."""
    if name not in known:
        near = nearest(name, known)
        yield (name,), f"is no rule; allowed: {', '.join(known)}.{near}"
    elif options is not False and not isinstance(options, dict):
        yield (name,), f"must be limits such as {{share: 0.5}}, or false; got {options!r}"
    elif options:
        allowed = {option.name: option.type for option in known[name].options}
        for limit, value in options.items():
            if problem := _problem(limit, value, allowed):
                yield (name, limit), problem


def _problem(limit: str, value: Any, allowed: Mapping[str, Any]) -> str:
    from pydantic import ValidationError

    if limit not in allowed:
        return f"no such limit; allowed: {', '.join(allowed) or 'none'}.{nearest(limit, allowed)}"
    try:
        _checked(allowed[limit], value)
    except ValidationError as error:
        return f"{error.errors()[0]['msg']}, got {value!r}"
    return ""


def _bound(entry: RuleEntry, limits: Mapping[str, Any]) -> Rule:
    types = {option.name: option.type for option in entry.options}
    return partial(
        entry.factory, **{name: _checked(types[name], value) for name, value in limits.items()}
    )


def _checked(kind: Any, value: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_python(value)
