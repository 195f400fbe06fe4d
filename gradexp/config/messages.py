"""From pydantic's findings to sentences: where, what was got, what is allowed, what is near."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gradexp.config.schema import REGISTRIES
from gradexp.config.yaml_file import KeyPath, Source, dotted
from gradexp.errors import ConfigError, nearest

TAGS = ("name", "family", "dataset")


def config_error(source: Source, error: ValidationError, schema: dict[str, Any]) -> ConfigError:
    """All findings at once, one line each."""
    lines = dict.fromkeys(_lines(source, error.errors(include_url=False), schema))
    return ConfigError("\n".join(lines))


def _lines(
    source: Source, findings: Iterable[ErrorDetails], schema: dict[str, Any]
) -> Iterator[str]:
    for finding in findings:
        path = _key_path(finding["loc"], source.data)
        where = source.origin(path)
        key = f"{dotted(path)}: " if path else ""
        yield f"{where}  {key}{_sentence(finding, path, schema)}".strip()


def _key_path(location: tuple[str | int, ...], data: Any) -> KeyPath:
    """Pydantic names the chosen member of a union inside the location; users never wrote it."""
    path: list[str | int] = []
    last = len(location) - 1
    for index, part in enumerate(location):
        if _holds(data, part):
            path.append(part)
            data = data[part]
        elif index == last and isinstance(data, dict) and not _is_choice(str(part)):
            path.append(part)
    return tuple(path)


def _holds(data: Any, part: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


def _is_choice(word: str) -> bool:
    return any(word in registry for registry in REGISTRIES.values())


def _sentence(finding: ErrorDetails, path: KeyPath, schema: dict[str, Any]) -> str:
    got, context = finding["input"], finding.get("ctx", {})
    match finding["type"]:
        case "extra_forbidden":
            return _unknown_key(finding["loc"], str(path[-1]), schema)
        case "union_tag_invalid":
            allowed = [word.strip("' ") for word in context["expected_tags"].split(",")]
            word = str(context["tag"])
            return f"got '{word}'; allowed: {', '.join(allowed)}.{nearest(word, allowed)}"
        case "missing" if path[-1:] != finding["loc"][-1:]:  # the part was given as its bare name
            return f"{finding['loc'][-1]} is missing"
        case "missing":
            return "is missing"
        case "value_error":
            return str(context["error"])
        case _:
            return f"{_without_subject(finding['msg'])}, got {_shown(got)}"


def _without_subject(message: str) -> str:
    """The key stands before it: `model.depth: should be greater than ...`."""
    sentence = re.sub("^(Input|String) should", "should", message)
    return sentence[0].lower() + sentence[1:]


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]}..." if len(text) > 60 else text  # noqa: PLR2004  keeps a line readable


def _unknown_key(location: tuple[str | int, ...], key: str, schema: dict[str, Any]) -> str:
    """An option of another part says so; any other word is compared with the allowed ones."""
    allowed = sorted(_allowed_keys(location[:-1], schema))
    owners = [
        entry.name
        for registry in REGISTRIES.values()
        if any(str(part) in registry for part in location[-2:-1])
        for entry in registry
        if key in {option.name for option in entry.options}
    ]
    if owners:
        return f"is an option of {', '.join(owners)}, not of {location[-2]}"
    listed = f"allowed: {', '.join(allowed)}." if allowed else "no options are allowed here."
    return f"unknown key; {listed}{nearest(key, allowed)}"


def _allowed_keys(location: tuple[str | int, ...], schema: dict[str, Any]) -> set[str]:
    """The keys that the JSON Schema has at that place."""
    places = [schema]
    for part in location:
        places = [
            found for place in places for found in _below(_alternatives(place, schema), str(part))
        ]
    return {
        key
        for place in places
        for option in _alternatives(place, schema)
        for key in option.get("properties", {})
    }


def _below(options: list[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    """What stands behind a key, or the one alternative that a tag chooses."""
    keyed = [
        option["properties"][part] for option in options if part in option.get("properties", {})
    ]
    chosen = [
        option
        for option in options
        for tag in TAGS
        if part in option.get("properties", {}).get(tag, {}).get("enum", ())
    ]
    return keyed or chosen


def _alternatives(place: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """A place of the schema with references followed and unions opened."""
    if "$ref" in place:
        return _alternatives(schema["$defs"][place["$ref"].rsplit("/", 1)[-1]], schema)
    for union in ("anyOf", "oneOf", "allOf"):
        if union in place:
            return [found for one in place[union] for found in _alternatives(one, schema)]
    return [place]
