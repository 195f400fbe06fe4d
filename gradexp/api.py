"""gradexp in Python: runs and sweeps carried out, and what lies on disk as frames and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pandas as pd
import yaml

from gradexp.analysis import Diagnosis, Verdict, diagnose
from gradexp.analysis.collection import find_runs, read_config
from gradexp.errors import RunError
from gradexp.records import TABLES, RunDir

if TYPE_CHECKING:
    from gradexp.config import Source

__all__ = ["Run", "Sweep", "load", "run", "sweep"]

ConfigLike: TypeAlias = str | Path | Mapping[str, Any]
"""A YAML file, or what one would hold."""


class Run:
    """A run on disk, finished or not: its tables as frames, and what is said of it.

    Tables are read when they are asked for, and kept; columns are those of the data dictionary.
    """

    def __init__(self, path: str | Path) -> None:
        self.directory = RunDir.open(Path(path))

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.directory.name

    @property
    def status(self) -> str:
        """running, finished, diverged or failed."""
        return str(self.directory.status())

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config."""
        content: dict[str, Any] = yaml.safe_load(self.directory.config.read_text()) or {}
        return content

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, device, times and how it ended."""
        return self.directory.read_manifest()

    @property
    def summary(self) -> dict[str, Any]:
        """Final figures; empty while it runs."""
        return self.directory.read_summary()

    @cached_property
    def layers(self) -> pd.DataFrame:
        """One row a layer: kind, fans, units, activation, norm and facts."""
        return self.directory.read("layers")

    @cached_property
    def gradients(self) -> pd.DataFrame:
        """One row a step and layer: norms of gradients, weights and updates."""
        return self.directory.read("gradients")

    @cached_property
    def signal(self) -> pd.DataFrame:
        """One row a probe and layer: moments of pre and post, per-example gradients."""
        return self.directory.read("signal")

    @cached_property
    def units(self) -> pd.DataFrame:
        """One row a probe and layer: dead, born dead, died, revived units."""
        return self.directory.read("units")

    @cached_property
    def unit_events(self) -> pd.DataFrame:
        """One row for every death and revival."""
        return self.directory.read("unit_events")

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row a step: loss, accuracy, learning rate."""
        return self.directory.read("steps")

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """One row an epoch: training and test figures."""
        return self.directory.read("epochs")

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """The reading in one line, and the verdicts; printed, it is a text to read."""
        return diagnose(self.directory)

    @property
    def verdicts(self) -> list[Verdict]:
        """Worst first, at least one."""
        return self.diagnosis.verdicts

    def __repr__(self) -> str:
        return f"<Run {self.path}: {self.status}>"


class Sweep:
    """The runs of a sweep, or of any folder: frames over all of them, and their verdicts."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.runs = [Run(found) for found in find_runs(self.path)]
        if not self.runs:
            raise RunError(f"{self.path}: no run directory here or below")

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, name: str) -> Run:
        """The run of that name."""
        for one in self.runs:
            if one.name == name:
                return one
        raise KeyError(name)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a run: its config by dotted keys, status, final figures and verdicts."""
        return pd.DataFrame([self._row(one) for one in self.runs])

    @staticmethod
    def _row(one: Run) -> dict[str, Any]:
        figures = {
            key: value
            for key, value in one.summary.items()
            if isinstance(value, int | float) or value is None
        }
        names = " ".join(one.diagnosis.names) if len(one.layers) else ""
        config = read_config(one.directory)
        return {"run": one.name, **config, "status": one.status, **figures, "verdicts": names}

    def frame(self, table: str) -> pd.DataFrame:
        """A table of all runs under one another, the run's name before its columns."""
        if table not in TABLES:
            raise KeyError(f"{table!r} is no table; there are {', '.join(TABLES)}")
        return pd.concat([one.directory.read(table).assign(run=one.name) for one in self.runs])

    @cached_property
    def verdicts(self) -> dict[str, list[Verdict]]:
        """By the name of the run, worst first."""
        return {one.name: one.verdicts for one in self.runs}

    def __repr__(self) -> str:
        return f"<Sweep {self.path}: {len(self)} runs>"


def load(path: str | Path) -> Run | Sweep:
    """What lies there: a run, or the runs of a sweep or folder.

    Raises:
        ConfigError: there is no such directory.
        RunError: no run lies there or below.
    """
    return Run(path) if RunDir(Path(path)).manifest.is_file() else Sweep(path)


def run(
    config: ConfigLike, *, out: str | Path = "runs", fresh: bool = False, **settings: Any
) -> Run:
    """Carry out the run of a config; one that was interrupted goes on, a finished one is loaded.

    Args:
        config: a YAML file, or what one would hold.
        out: the folder in which its directory will lie.
        fresh: begin anew, whatever is there.
        **settings: laid over the config: sections (`model={"depth": 30}`), keys (`seed=1`), or
            dotted keys (`**{"model.depth": 30}`).

    Raises:
        ConfigError: the config is wrong, with every finding.
        DataError: the data set is missing or damaged.
        RunError: the directory is in use or cannot be written.
    """
    from gradexp.config import resolve
    from gradexp.config.load import refuse_sweep
    from gradexp.train import execute

    source, folder = _source(config, settings)
    refuse_sweep(source, "`gradexp.sweep`")
    return Run(execute(resolve(source, folder), Path(out), fresh=fresh).run.path)


def sweep(  # noqa: PLR0913  one keyword for every choice
    config: ConfigLike,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    seeds: int | None = None,
    out: str | Path | None = None,
    workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    retry_failed: bool = False,
    fail_fast: bool = False,
    **settings: Any,
) -> Sweep:
    """Carry out a grid of runs; the same call again goes on where it stopped.

    Args:
        config: a YAML file, or what one would hold.
        grid: axes, added to those of its `sweep:` block: `{"model.depth": [5, 10, 20]}`.
        seeds: how many replicates of each cell.
        out: the sweep directory; `sweeps/NAME` where None.
        workers: processes; as many as there are cores where None.
        engine: processes here, or Ray tasks.
        address: of an existing Ray cluster.
        retry_failed: run failed cells again.
        fail_fast: start no further cell after a failure.
        **settings: laid over the config, as for `run`.

    Raises:
        ConfigError: the config is wrong, with every finding of every cell.
        RunError: the directory is in use or cannot be written, or no worker can be started.
    """
    from gradexp.config import Source
    from gradexp.sweeps import SweepOptions, plan_source, run_sweep

    source, folder = _source(config, settings)
    block = dict(source.data.get("sweep") or {})
    if grid:
        axes = {key: list(values) for key, values in grid.items()}
        block["grid"] = {**(block.get("grid") or {}), **axes}
    if seeds is not None:
        block["seeds"] = seeds
    plan = plan_source(Source({**source.data, "sweep": block}, source.origins), folder)
    options = SweepOptions(
        engine=engine,
        workers=workers,
        address=address,
        retry_failed=retry_failed,
        fail_fast=fail_fast,
    )
    return Sweep(run_sweep(plan, Path(out or Path("sweeps") / plan.name), options).directory)


def _source(config: ConfigLike, settings: Mapping[str, Any]) -> tuple[Source, Path]:
    """Raw settings, and the folder that files which they name lie in."""
    from gradexp.config import Source, assign, read_yaml

    if isinstance(config, Mapping):
        source, folder = Source(dict(config)), Path()
    else:
        source, folder = read_yaml(Path(config)), Path(config).parent
    for key, value in settings.items():
        # A section is laid over key by key, so that what it does not name stays.
        inner = value if key in SECTIONS and isinstance(value, Mapping) else {"": value}
        for name, one in inner.items():
            source = assign(source, f"{key}.{name}".rstrip("."), one, f"{key}=")
    return source, folder


SECTIONS = ("data", "model", "train", "probe")
