"""From a file and overrides to a resolved config, its text and its id."""

from __future__ import annotations

import hashlib
import json
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
from gradexp.imports import fingerprint, import_file
from gradexp.records import RULES_FILE

ID_LENGTH = 10


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """The resolved config of one run.

    Raises:
        ConfigError: with every finding, each on its own line.
    """
    source = with_overrides(read_yaml(path), overrides)
    refuse_sweep(source, f"`gradexp sweep {path}`")
    return resolve(source, path.parent)


def refuse_sweep(source: Source, instead: str) -> None:
    """A config of many runs is not that of one.

    Raises:
        ConfigError: it has a `sweep:` block; `instead` is what takes one.
    """
    if "sweep" in source.data:
        where = source.origin(("sweep",))
        raise ConfigError(f"{where}  sweep: describes many runs; use {instead}".strip())


def resolve(source: Source, folder: Path = Path()) -> Config:
    """Check raw settings against the schema; files named by `imports` lie relative to `folder`."""
    data = {**source.data, "imports": import_parts(source, folder)}
    if isinstance(source.data.get("rules"), str):
        data["rules"] = rules_path(source, folder)
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
        import_file(path, source.origin(("imports", index)))
    return [str(path) for path in paths]


def rules_path(source: Source, folder: Path) -> str:
    """The absolute path of the file with limits for the rules."""
    path = (folder / source.data["rules"]).resolve()
    if not path.is_file():
        raise ConfigError(f"{source.origin(('rules',))}  rules: {path} is not a file")
    return str(path)


def settings(config: Config) -> dict[str, Any]:
    """The config as plain data: complete, in the order of the schema.

    Files are named as their copies beside the config in a run directory are.
    """
    plain = config.model_dump(mode="json")
    imports = [Path(path).name for path in config.imports]
    return {**plain, "imports": imports, "rules": config.rules and RULES_FILE}


def to_yaml(config: Config) -> str:
    """The config as YAML text; `gradexp run` on it repeats the run."""
    return yaml.safe_dump(settings(config), sort_keys=False, allow_unicode=True)


def run_id(config: Config) -> str:
    """A hash of everything that decides a run's figures: the config and the imported files.

    How a run is called and judged decides none of them.
    """
    content = {**settings(config), "imports": [fingerprint(Path(path)) for path in config.imports]}
    del content["name"], content["rules"]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]
