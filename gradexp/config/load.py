"""From a file and overrides to a resolved config, its text and its id."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gradexp.config.messages import config_error
from gradexp.config.overrides import with_overrides
from gradexp.config.schema import Config, config_type
from gradexp.config.yaml_file import Source, read_yaml
from gradexp.errors import ConfigError

ID_LENGTH = 10


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """The resolved config of one run.

    Raises:
        ConfigError: with every finding, each on its own line.
    """
    source = with_overrides(read_yaml(path), overrides)
    if "sweep" in source.data:
        raise ConfigError(
            f"{source.origin(('sweep',))}  sweep: describes many runs; use `gradexp sweep {path}`"
        )
    return resolve(source, path.parent)


def resolve(source: Source, folder: Path = Path()) -> Config:
    """Check raw settings against the schema; files named by `imports` lie relative to `folder`."""
    data = {**source.data, "imports": import_parts(source, folder)}
    try:
        return config_type().model_validate(data)
    except ValidationError as error:
        raise config_error(Source(data, source.origins), error, json_schema()) from error


@cache
def _json_schema(schema_type: type[Config]) -> dict[str, Any]:
    return schema_type.model_json_schema()


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a config, for editors, with the parts that are registered now."""
    return _json_schema(config_type())


def import_parts(source: Source, folder: Path) -> Any:
    """Run the files that register a user's own parts; returns their absolute paths."""
    names = source.data.get("imports", [])
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return names  # the schema says what is wrong with it
    paths = [(folder / name).resolve() for name in names]
    for index, path in enumerate(paths):
        _import_file(path, source.origin(("imports", index)))
    return [str(path) for path in paths]


def _import_file(path: Path, origin: str) -> None:
    if not path.is_file():
        raise ConfigError(f"{origin}  imports: {path} is not a file")
    name = f"gradexp_parts_{fingerprint(path)}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{origin}  imports: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{origin}  imports: {path} failed: {type(error).__name__}: {error}"
        ) from error
    sys.modules[name] = module
    config_type.cache_clear()


def fingerprint(path: Path) -> str:
    """A short hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def settings(config: Config) -> dict[str, Any]:
    """The config as plain data: complete, in the order of the schema, imports by file name."""
    plain = config.model_dump(mode="json")
    return {**plain, "imports": [Path(path).name for path in config.imports]}


def to_yaml(config: Config) -> str:
    """The config as YAML text; `gradexp run` on it repeats the run."""
    return yaml.safe_dump(settings(config), sort_keys=False, allow_unicode=True)


def run_id(config: Config) -> str:
    """A hash of everything that decides a run's figures: the config and the imported files."""
    content = {**settings(config), "imports": [fingerprint(Path(path)) for path in config.imports]}
    del content["name"]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]
