"""What a run is: the schema of its config, loading with overrides, resolved text and id."""

from gradexp.config.load import json_schema, load_config, resolve, run_id, settings, to_yaml
from gradexp.config.overrides import assign, with_overrides
from gradexp.config.schema import REGISTRIES, Config
from gradexp.config.yaml_file import Source, parse_scalar, parse_yaml, read_yaml

__all__ = [
    "REGISTRIES",
    "Config",
    "Source",
    "assign",
    "json_schema",
    "load_config",
    "parse_scalar",
    "parse_yaml",
    "read_yaml",
    "resolve",
    "run_id",
    "settings",
    "to_yaml",
    "with_overrides",
]
