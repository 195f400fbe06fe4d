"""The golden file of everything the program chooses when nobody says otherwise.

`tests/data/defaults.yaml` holds every default and every limit: what a minimal config of each
family becomes, the options of each part of each registry (limits of the rules among them), the keys
of a config and of its `sweep:` block, the options of the command line, the arguments of the
functions in Python. All of them are found, not listed here, so that nothing new goes unseen.

    python -m tests.defaults        # writes the file anew: look at the diff before it is committed
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter

import gradexp
from gradexp.registry import Entry, Registry

FILE = Path(__file__).parent / "data" / "defaults.yaml"
REWRITE = "python -m tests.defaults"

# Where a config has the parts of a kind, and the key of their name.
PLACES = {
    "activation": ("model.activation", "name"),
    "augmentation": ("data.augment", "name"),
    "clip": ("train.clip", "name"),
    "dataset": ("data", "dataset"),
    "init": ("model.init", "name"),
    "model": ("model", "family"),
    "norm": ("model.norm", "name"),
    "optimizer": ("train.optimizer", "name"),
    "residual": ("model.residual", "name"),
    "schedule": ("train.schedule", "name"),
}
Tree = dict[str, Any]


def current() -> str:
    """The text of the golden file, as the program is now."""
    content = {
        "families": families(),
        "parts": {registry.kind: parts(registry) for registry in registries()},
        "keys": keys(),
        "command line": commands(),
        "python": dict(signatures()),
    }
    heading = f"# Every default and limit of the program. To write it anew: {REWRITE}\n"
    return heading + yaml.safe_dump(
        plain(content), sort_keys=False, width=100, default_flow_style=None
    )


def golden() -> Tree:
    """What the golden file says, as data."""
    content: Tree = yaml.safe_load(FILE.read_text())
    return content


def families() -> Tree:
    """The resolved config of every model family, where the file names nothing but the family."""
    from gradexp.config import resolve, settings
    from gradexp.config.yaml_file import Source
    from gradexp.nn import MODELS

    return {name: settings(resolve(Source({"model": {"family": name}}))) for name in MODELS.names()}


@cache
def modules() -> tuple[Any, ...]:
    """Every module of the package; the program itself, which would start, stays out."""
    found = pkgutil.walk_packages(gradexp.__path__, "gradexp.")
    names = [module.name for module in found if not module.name.endswith("__main__")]
    return (gradexp, *map(importlib.import_module, names))


def registries() -> list[Registry[Any]]:
    """Every registry of the package, by kind."""
    found = {
        value.kind: value
        for module in modules()
        for value in vars(module).values()
        if isinstance(value, Registry)
    }
    return [found[kind] for kind in sorted(found)]


def parts(registry: Registry[Any]) -> Tree:
    """Every entry: its options, and what else is said of it."""
    return {entry.name: part(entry) for entry in registry}


def part(entry: Entry[Any]) -> Tree:
    """The source, the aliases and the options of a part, each with its default and limits."""
    about = {"source": entry.source, "aliases": list(entry.aliases)}
    options = {
        option.name: {
            **({} if option.default is inspect.Parameter.empty else {"default": option.default}),
            **limits(TypeAdapter(option.type).json_schema()),
        }
        for option in entry.options
    }
    return {**{key: value for key, value in about.items() if value}, **options}


def limits(schema: Tree) -> Tree:
    """The type and the range of a value, without what a JSON Schema says for readers."""
    return {key: value for key, value in schema.items() if key not in {"title", "description"}}


def keys() -> Tree:
    """The keys of a config file that belong to no part, section by section."""
    from gradexp.sweeps.schema import schema_with_sweep

    schema = schema_with_sweep()
    return dict(_sections("config", schema, schema))


def _sections(name: str, place: Tree, schema: Tree) -> Iterator[tuple[str, Tree]]:
    """The keys of a place and of the sections below it that are no part."""
    found = _common_keys(place, schema)
    yield (
        name,
        {
            key: {
                **({"required": True} if key in place.get("required", []) else {}),
                **_own(value, schema),
            }
            for key, value in found.items()
        },
    )
    for key, value in found.items():
        if key not in {"activation", "init", "norm", "residual", "augment"} and _common_keys(
            value, schema
        ):
            yield from _sections(key, value, schema)


def _common_keys(place: Tree, schema: Tree) -> Tree:
    """The keys that all alternatives of a place have alike; none where it is a value."""
    options = [option.get("properties", {}) for option in _alternatives(place, schema)]
    first, *others = options
    return {
        key: value
        for key, value in first.items()
        if all(other.get(key) == value for other in others)
    }


def _own(value: Tree, schema: Tree) -> Tree:
    """A key's type, range and default; a section or part shows its default only."""
    inner = any("$ref" in str(value.get(key)) for key in ("oneOf", "anyOf", "allOf", "$ref"))
    shown = {"default": value["default"]} if "default" in value else {}
    if inner or "$ref" in value or _common_keys(value, schema):
        return shown
    return {**shown, **{key: one for key, one in limits(value).items() if key != "default"}}


def _alternatives(place: Tree, schema: Tree) -> list[Tree]:
    if "$ref" in place:
        return _alternatives(schema["$defs"][place["$ref"].rpartition("/")[2]], schema)
    for union in ("anyOf", "oneOf"):
        if union in place:
            return [found for one in place[union] for found in _alternatives(one, schema)]
    return [place]


def commands() -> Tree:
    """Every command with its arguments and options: names, types, ranges, defaults."""
    from gradexp.cli.app import app

    callbacks = {"gradexp": app.registered_callback, **_named(app.registered_commands)}
    return {name: dict(_parameters(info.callback)) for name, info in callbacks.items()}


def _named(commands: list[Any]) -> Tree:
    return {info.name or info.callback.__name__: info for info in commands}


def _parameters(callback: Any) -> Iterator[tuple[str, Tree]]:
    """The arguments and options of one command, by how users write them."""
    hints = get_type_hints(callback, include_extras=True)
    for name, one in inspect.signature(callback).parameters.items():
        kind, info = get_args(hints[name])
        shown = {
            "type": kind.__name__ if isinstance(kind, type) else str(kind).replace("pathlib.", ""),
            "min": getattr(info, "min", None),
            "max": getattr(info, "max", None),
            "metavar": info.metavar,
            "default": one.default,
        }
        shown = {key: value for key, value in shown.items() if key == "default" or value}
        if one.default is inspect.Parameter.empty:
            shown["default"] = "required"
        written = [str(word) for word in (info.default, *(info.param_decls or ()))]
        yield " ".join(word for word in written if word.startswith("-")) or name, shown


def signatures() -> Iterator[tuple[str, Tree]]:
    """Default arguments of everything the packages offer by name."""
    for module in modules():
        for name in sorted(getattr(module, "__all__", [])):
            offered = getattr(module, name)
            defaults = dict(_defaults(offered)) if callable(offered) else {}
            if defaults:
                yield f"{module.__name__}.{name}", defaults


def _defaults(offered: Any) -> Iterator[tuple[str, Any]]:
    try:
        parameters = inspect.signature(offered).parameters.values()
    except ValueError:  # a type that does not say how it is made
        return
    for one in parameters:
        if one.default is not inspect.Parameter.empty:
            yield one.name, one.default


def plain(value: Any) -> Any:
    """The value as YAML can write it."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


if __name__ == "__main__":
    FILE.write_text(current())
