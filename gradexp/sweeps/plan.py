"""The plan of a sweep: every cell, resolved and checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gradexp.analysis import load_rules
from gradexp.config import (
    Config,
    Source,
    assign,
    read_yaml,
    resolve,
    run_id,
    settings,
    with_overrides,
)
from gradexp.errors import ConfigError
from gradexp.sweeps.axes import Point, described, points, value_text, with_grid
from gradexp.sweeps.schema import Resources, SweepConfig, read_block


@dataclass(frozen=True)
class Cell:
    """One run of the sweep.

    Attributes:
        run: the name of its directory below `runs/`.
        id: the content id of its config.
        axes: the value of every axis, as tables show it.
        config: the resolved config; it holds the seed.
    """

    run: str
    id: str
    axes: dict[str, str]
    config: Config

    def row(self) -> dict[str, str]:
        """Its line in `plan.csv`."""
        return {**self.axes, "seed": str(self.config.seed), "id": self.id, "run": self.run}

    def __str__(self) -> str:
        """What messages call it."""
        return f"{described(self.axes)} seed={self.config.seed}".strip()


@dataclass(frozen=True)
class Plan:
    """Every cell of a sweep, in order, and the text that plans them again."""

    name: str
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    resources: Resources
    text: str


def plan_sweep(
    path: Path,
    overrides: Iterable[str] = (),
    grid: Iterable[str] = (),
    seeds: int | None = None,
) -> Plan:
    """Read a config with a `sweep:` block and resolve every cell.

    Args:
        path: the YAML file.
        overrides: `KEY=VALUE` settings laid over the file.
        grid: `KEY=V1,V2` axes, added or replacing the file's.
        seeds: how many replicates of each cell; None keeps the file's number.

    Raises:
        ConfigError: with every finding of every cell, each listed once.
    """
    source = with_grid(with_overrides(read_yaml(path), overrides), grid, seeds)
    return plan_source(source, path.parent, str(path))


def plan_source(source: Source, folder: Path, called: str = "the config") -> Plan:
    """As `plan_sweep`, from raw settings; files that they name lie relative to `folder`.

    `called` is what messages call the config.
    """
    block = read_block(source, called)
    base = Source({k: v for k, v in source.data.items() if k != "sweep"}, source.origins)
    chosen = points(block, source)
    _refuse_seed_twice(chosen, block)
    configs = _resolved(base, chosen, folder)
    cells = _cells(list(zip(chosen, configs, strict=True)), block)
    for rules in {cell.config.rules for cell in cells if cell.config.rules}:
        load_rules(Path(rules))
    axes = tuple(key for key in _keys(chosen) if key != "seed")
    return Plan(cells[0].config.name, axes, cells, block.resources, _text(base, block, cells))


def _refuse_seed_twice(chosen: Sequence[Point], block: SweepConfig) -> None:
    if block.seeds > 1 and "seed" in _keys(chosen):
        raise ConfigError("sweep: seed is an axis and sweep.seeds is given too; keep one of them")


def _keys(chosen: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(setting.key for point in chosen for setting in point))


def _resolved(base: Source, chosen: Sequence[Point], folder: Path) -> list[Config]:
    """The config of every point; what is wrong with several of them is said once."""
    configs: list[Config] = []
    findings: dict[str, list[Point]] = {}
    for point in chosen:
        try:
            configs.append(resolve(_laid_over(base, point), folder))
        except ConfigError as error:
            for line in str(error).splitlines():
                findings.setdefault(line, []).append(point)
    if findings:
        raise ConfigError("\n".join(_finding(*item, len(chosen)) for item in findings.items()))
    return configs


def _laid_over(base: Source, point: Point) -> Source:
    for setting in point:
        base = assign(base, setting.key, setting.value, setting.origin)
    return base


def _finding(line: str, concerned: list[Point], total: int) -> str:
    """A finding, and the first of the cells that have it, unless it is not about cells at all."""
    if len(concerned) == total and total > 1:
        return line
    first = described({setting.key: setting.value for setting in concerned[0]})
    if not first:
        return line
    others = f" and {len(concerned) - 1} more" if len(concerned) > 1 else ""
    return f"{line} (in cell {first}{others})"


def _cells(chosen: Sequence[tuple[Point, Config]], block: SweepConfig) -> tuple[Cell, ...]:
    """Every point with each of its seeds; points that mean the same run are one cell."""
    keys = [key for key in _keys([point for point, _ in chosen]) if key != "seed"]
    cells: dict[str, Cell] = {}
    for point, config in chosen:
        axes = _axis_texts(keys, point, config)
        for replicate in range(block.seeds):
            seeded = config.model_copy(update={"seed": config.seed + replicate})
            content = run_id(seeded)
            cells.setdefault(content, Cell(f"{config.name}-{content}", content, axes, seeded))
    if not cells:
        raise ConfigError("sweep: every cell is excluded; nothing is left to run")
    return tuple(cells.values())


def _axis_texts(keys: Sequence[str], point: Point, config: Config) -> dict[str, str]:
    """The value of every axis; where the point does not set it, what the config has there."""
    own = {setting.key: setting.value for setting in point}
    if not own.keys() >= set(keys):
        resolved = settings(config)
        own = {key: own[key] if key in own else _at(resolved, key) for key in keys}
    return {key: value_text(own[key]) for key in keys}


def _at(data: Any, key: str) -> Any:
    """What a resolved config has at a dotted key: of a part its name, nothing where it has none."""
    for part in key.split("."):
        data = data.get(part, "") if isinstance(data, dict) else ""
    return data.get("name", "") if isinstance(data, dict) else data


def _text(base: Source, block: SweepConfig, cells: Sequence[Cell]) -> str:
    """The sweep as YAML; `gradexp sweep` on it plans the same cells."""
    copies = settings(cells[0].config)
    files = {key: copies[key] for key in ("imports", "rules") if copies[key]}
    data = {**base.data, **files}
    sweep = block.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump({**data, "sweep": sweep}, sort_keys=False, allow_unicode=True)
