"""The axes of a grid: keys that take values, one at a time or several together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

from gradexp.config import Source, parse_scalar
from gradexp.errors import ConfigError, nearest
from gradexp.sweeps.schema import SweepConfig

GRID = ("sweep", "grid")
OWNED = ("name", "sweep")


@dataclass(frozen=True)
class Setting:
    """One key at one value, and where that was written."""

    key: str
    value: Any
    origin: str


Point: TypeAlias = tuple[Setting, ...]
Axis: TypeAlias = list[Point]


def with_grid(source: Source, grid: Iterable[str], seeds: int | None) -> Source:
    """The source with `--grid KEY=V1,V2` axes added or replaced, and `--seeds` set."""
    for text in grid:
        key, equals, values = text.partition("=")
        if not (key and equals and values):
            raise ConfigError(f"--grid {text}: expected KEY=V1,V2, like model.depth=5,10,20")
        source = _set(source, (*GRID, key), parse_scalar(f"[{values}]"), f"--grid {text}")
    if seeds is not None:
        source = _set(source, ("sweep", "seeds"), seeds, f"--seeds {seeds}")
    return source


def _set(source: Source, path: tuple[str, ...], value: Any, origin: str) -> Source:
    """As `assign`, where a key of the path may hold dots itself."""
    kept = {place: file for place, file in source.origins.items() if place[: len(path)] != path}
    return Source(_placed(source.data, path, value), {**kept, path: origin})


def _placed(data: Any, path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    inner = data if isinstance(data, dict) else {}
    return {**inner, path[0]: _placed(inner.get(path[0]), path[1:], value)}


def points(block: SweepConfig, source: Source) -> list[Point]:
    """Every combination of the axes that is not excluded, then the included rows.

    Raises:
        ConfigError: an axis or row is malformed, or an excluded row matches nothing.
    """
    axes = [_axis(key, values, source) for key, values in block.grid.items()]
    _refuse_repeated_keys(axes)
    combined = [sum(parts, ()) for parts in product(*axes)] if axes else []
    kept = _without_excluded(combined, block, source)
    included = [
        tuple(
            Setting(key, value, source.origin(("sweep", "include", index, key)))
            for key, value in row.items()
        )
        for index, row in enumerate(block.include)
    ]
    return [*kept, *included] if axes or included else [()]


def _axis(text: str, values: list[Any], source: Source) -> Axis:
    keys = [key.strip() for key in text.split(",")]
    where = source.origin((*GRID, text))
    for key in keys:
        if not key or key.split(".")[0] in OWNED:
            raise ConfigError(f"{where}  sweep.grid.{text}: '{key}' cannot be an axis")
    return [
        _point(keys, value, source.origin((*GRID, text, index)))
        for index, value in enumerate(values)
    ]


def _point(keys: list[str], value: Any, origin: str) -> Point:
    if len(keys) == 1:
        return (Setting(keys[0], value, origin),)
    if not isinstance(value, list) or len(value) != len(keys):
        raise ConfigError(
            f"{origin}  sweep.grid.{', '.join(keys)}: each value is a list of {len(keys)}, one for "
            f"each key; got {value_text(value)}"
        )
    return tuple(Setting(key, one, origin) for key, one in zip(keys, value, strict=True))


def _refuse_repeated_keys(axes: list[Axis]) -> None:
    seen: set[str] = set()
    for setting in (setting for axis in axes for setting in axis[0]):
        if setting.key in seen:
            raise ConfigError(f"{setting.origin}  sweep.grid: two axes move {setting.key}")
        seen.add(setting.key)


def _without_excluded(combined: list[Point], block: SweepConfig, source: Source) -> Iterator[Point]:
    """An excluded row names values of axes; it leaves out the points that have all of them."""
    keys = [setting.key for setting in combined[0]] if combined else []
    left = [{setting.key: setting.value for setting in point} for point in combined]
    dropped: set[int] = set()
    for row_index, row in enumerate(block.exclude):
        where = f"{source.origin(('sweep', 'exclude', row_index))}  sweep.exclude.{row_index}"
        for key in row:
            if key not in keys:
                allowed = f"allowed: {', '.join(keys)}.{nearest(key, keys)}"
                raise ConfigError(f"{where}: {key} is not an axis of the grid; {allowed}")
        matching = {index for index, values in enumerate(left) if _matches(row, values)}
        if not matching:
            raise ConfigError(f"{where}: no cell has {described(row)}; nothing is excluded")
        dropped |= matching
    return (point for index, point in enumerate(combined) if index not in dropped)


def _matches(row: dict[str, Any], values: dict[str, Any]) -> bool:
    return all(values[key] == value for key, value in row.items())


def described(values: dict[str, Any]) -> str:
    """Values of axes in one line: `model.depth=5 model.activation=relu`."""
    return " ".join(f"{key}={value_text(value)}" for key, value in values.items())


def value_text(value: Any) -> str:
    """A setting as a table shows it: a part without options by its name, other mappings as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and set(value) == {"name"}:
        return str(value["name"])
    return json.dumps(value)
