"""YAML without its traps, and with the line of every key.

Numbers and booleans follow YAML 1.2: `1e-3` is a number, `no` and `off` are words. A key that
stands twice is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from gradexp.errors import ConfigError

KeyPath: TypeAlias = tuple[str | int, ...]

NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.nan")


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""


Loader.yaml_implicit_resolvers = {}
for tag, pattern, first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", NUMBER.pattern, "-+.0123456789"),
    ("merge", r"<<", "<"),
):
    Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), list(first)
    )

# YAML 1.2 knows no octal numbers that merely begin with 0.
Loader.add_constructor("tag:yaml.org,2002:int", lambda _loader, node: int(node.value))


@dataclass(frozen=True)
class Source:
    """Raw settings, and for each key path where it was written (`file:line` or an option)."""

    data: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> str:
        """Where that key, or the nearest key above it, was written."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return ""


def parse_scalar(text: str) -> Any:
    """A value given on the command line, read as YAML."""
    try:
        return _parsed(text, f"'{text}'", {})
    except yaml.YAMLError as error:
        raise ConfigError(f"'{text}' is not valid YAML: {_first_line(error)}") from error


def read_yaml(path: Path) -> Source:
    """The settings in a file; unreadable or malformed ones are a `ConfigError` with the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, file: str) -> Source:
    """The settings in a text; `file` is what error messages call it."""
    origins: dict[KeyPath, str] = {}
    try:
        data = _parsed(text, file, origins)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        raise ConfigError(f"{where}  is not valid YAML: {_first_line(error)}") from error
    if not origins:
        return Source({}, {(): f"{file}:1"})
    if not isinstance(data, dict):
        raise ConfigError(f"{file}:1  expected keys and values, got {data!r}")
    return Source(data, origins)


def _parsed(text: str, file: str, origins: dict[KeyPath, str]) -> Any:
    """The content of a text; `origins` learns where each key stands, none where all is empty."""
    loader = Loader(text)
    try:
        root = loader.get_single_node()
        return None if root is None else _construct(loader, root, (), file, origins)
    except RecursionError as error:
        raise yaml.YAMLError("it contains itself, or is nested too deeply") from error
    finally:
        loader.dispose()


def _first_line(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _construct(
    loader: Loader, node: yaml.Node, path: KeyPath, file: str, origins: dict[KeyPath, str]
) -> Any:
    origins.setdefault(path, f"{file}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        return _construct_mapping(loader, node, path, file, origins)
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(loader, item, (*path, index), file, origins)
            for index, item in enumerate(node.value)
        ]
    return _construct_scalar(loader, node)


def _construct_scalar(loader: Loader, node: yaml.Node) -> Any:
    """A scalar; one that is not what its own tag says, as in `!!int ten`, is malformed."""
    try:
        return loader.construct_object(node)
    except (AttributeError, KeyError, ValueError) as error:
        raise yaml.constructor.ConstructorError(
            problem=f"'{str(node.value)[:40]}' is no {node.tag.rpartition(':')[2]}",
            problem_mark=node.start_mark,
        ) from error


def _construct_mapping(
    loader: Loader, node: yaml.MappingNode, path: KeyPath, file: str, origins: dict[KeyPath, str]
) -> dict[str, Any]:
    written = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    loader.flatten_mapping(node)
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        where = f"{file}:{key_node.start_mark.line + 1}"
        if written.count(key) > 1 and key in data:
            raise ConfigError(f"{where}  {dotted((*path, key))}: stands twice")
        origins[(*path, key)] = where
        data[key] = _construct(loader, value_node, (*path, key), file, origins)
    return data


def dotted(path: KeyPath) -> str:
    """A key path as users write it: `model.activation`."""
    return ".".join(str(part) for part in path)
