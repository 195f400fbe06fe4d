"""The `sweep:` block: which cells a sweep has, and what each may use."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import Field, ValidationError

from gradexp.config import Source, json_schema
from gradexp.config.messages import config_error
from gradexp.config.parts import Strict
from gradexp.errors import ConfigError
from gradexp.registry import Count, NonNegative

Values = Annotated[list[Any], Field(min_length=1)]
Point = Annotated[dict[str, Any], Field(min_length=1)]


class Resources(Strict):
    """What one cell occupies while it runs: processor cores (its threads) and GPUs (Ray only)."""

    cpus: Count = 1
    gpus: NonNegative = 0.0


class SweepConfig(Strict):
    """Axes, replicates, and cells to leave out or to add.

    `grid` maps a dotted config key to its values; `a.b, c.d` moves two keys together, each value
    being a list with one entry per key. `seeds` repeats every cell with seed, seed + 1, ....
    """

    grid: dict[str, Values] = Field(default_factory=dict)
    seeds: Count = 1
    exclude: list[Point] = Field(default_factory=list)
    include: list[Point] = Field(default_factory=list)
    resources: Resources = Field(default_factory=Resources)


class _Block(Strict):
    """The file as far as a sweep reads it."""

    sweep: SweepConfig = Field(default_factory=SweepConfig)


@cache
def _schema() -> dict[str, Any]:
    return _Block.model_json_schema()


def schema_with_sweep() -> dict[str, Any]:
    """The JSON Schema of a config file, its `sweep:` block included."""
    run, block = json_schema(), _schema()
    return {
        **run,
        "$defs": {**run["$defs"], **block["$defs"]},
        "properties": {**run["properties"], **block["properties"]},
    }


def read_block(source: Source, file: object) -> SweepConfig:
    """The checked `sweep:` block of a source; an error lists every finding.

    Args:
        source: the raw settings, overrides and command-line axes laid over them.
        file: what messages call the config.

    Raises:
        ConfigError: the block is wrong, or there is none.
    """
    if "sweep" not in source.data:
        raise ConfigError(
            f"{file}: has no `sweep:` block; give one, or --grid KEY=V1,V2 or --seeds N, "
            "or use `gradexp run`"
        )
    data = {"sweep": source.data["sweep"]}
    try:
        return _Block.model_validate(data).sweep
    except ValidationError as error:
        raise config_error(Source(data, source.origins), error, _schema()) from error
