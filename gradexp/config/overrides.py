"""`--set KEY=VALUE`: settings from the command line, laid over those of the file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gradexp.config.yaml_file import KeyPath, Source, parse_scalar
from gradexp.errors import ConfigError

# A part may be written as its bare name; to set one of its options it becomes a mapping.
TAGS: dict[KeyPath, str] = {("data",): "dataset", ("model",): "family"}
# Setting one of these takes the other away.
EITHER: dict[KeyPath, KeyPath] = {
    ("train", "epochs"): ("train", "steps"),
    ("train", "steps"): ("train", "epochs"),
}


def with_overrides(source: Source, overrides: Iterable[str]) -> Source:
    """The source with each KEY=VALUE laid over it, in order; the source stays as it is."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not (key and equals):
            raise ConfigError(f"--set {override}: expected KEY=VALUE, like model.depth=10")
        source = assign(source, key, parse_scalar(value), f"--set {override}")
    return source


def assign(source: Source, key: str, value: Any, origin: str) -> Source:
    """The source with one dotted key set; `origin` is where error messages say it was."""
    path: KeyPath = tuple(key.split("."))
    other = EITHER.get(path) if value is not None else None
    data = _without(source.data, other) if other else source.data
    kept = {place: file for place, file in source.origins.items() if place[: len(path)] != path}
    return Source(_with(data, path, value, ()), {**kept, path: origin})


def _with(data: Any, path: KeyPath, value: Any, above: KeyPath) -> Any:
    if not path:
        return value
    if isinstance(data, str):
        data = {TAGS.get(above, "name"): data}
    settings = dict(data) if isinstance(data, dict) else {}
    settings[str(path[0])] = _with(settings.get(str(path[0])), path[1:], value, (*above, path[0]))
    return settings


def _without(data: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    head, rest = str(path[0]), path[1:]
    if head not in data:
        return data
    if not rest:
        return {key: value for key, value in data.items() if key != head}
    inner = data[head]
    return {**data, head: _without(inner, rest)} if isinstance(inner, dict) else data
