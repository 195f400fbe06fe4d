"""Run directories found under paths, each with its config, its figures and its verdicts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from gradexp.analysis.cache import evidence_of
from gradexp.analysis.evidence import Evidence
from gradexp.analysis.judging import judge_evidence
from gradexp.analysis.quantities import QUANTITIES
from gradexp.analysis.rules_file import rules_of
from gradexp.analysis.verdicts import Verdict
from gradexp.errors import ConfigError, RunError
from gradexp.records import RunDir, read_json


@dataclass(frozen=True)
class JudgedRun:
    """One run as a report sees it.

    Attributes:
        directory: where it lies.
        status: running, finished, diverged or failed.
        config: its resolved config with dotted keys, `{"model.activation": "relu", ...}`.
        figures: every entry of `QUANTITIES` by name.
        verdicts: worst first, at least one.
    """

    directory: RunDir
    status: str
    config: dict[str, Any]
    figures: dict[str, float]
    verdicts: tuple[Verdict, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict."""
        return self.verdicts[0]

    @property
    def seed(self) -> Any:
        """The seed it was run with."""
        return self.config.get("seed")

    def evidence(self) -> Evidence:
        """What its tables say; read again at every call, so that many runs fit into memory."""
        return evidence_of(self.directory)


@dataclass(frozen=True)
class Collection:
    """Runs that are reported together, and what could not be read."""

    runs: list[JudgedRun]
    unreadable: list[str]

    @cached_property
    def by_status(self) -> dict[str, int]:
        """How many runs have each status."""
        statuses = [run.status for run in self.runs]
        return {status: statuses.count(status) for status in dict.fromkeys(statuses)}


def collect(paths: Sequence[Path], limits: Path | None = None) -> Collection:
    """Read every run directory at or below the paths, and judge it by its rules.

    A run that has no layer table yet has nothing to report: it is named, as is one whose files are
    damaged.

    Args:
        paths: run directories, sweep directories, or folders of them.
        limits: a rules file to take instead of each run's own.

    Raises:
        ConfigError: a path does not exist, or a rules file is wrong.
        RunError: there is no run directory below any path.
    """
    found = [run for path in paths for run in find_runs(path)]
    if not found:
        raise RunError(f"{', '.join(map(str, paths))}: no run directory here or below")
    runs, unreadable = [], []
    for run in dict.fromkeys(path.resolve() for path in found):
        try:
            runs.append(judged(RunDir(run), limits))
        except RunError as error:
            unreadable.append(str(error))
    return Collection(runs, unreadable)


def find_runs(path: Path) -> Iterator[Path]:
    """The run directories at or below a path, sorted; what lies inside one is not searched.

    Raises:
        ConfigError: the path does not exist.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such directory; give a run or a sweep directory")
    for folder, folders, files in os.walk(path):
        if "manifest.json" in files:
            folders.clear()
            yield Path(folder)
        folders.sort()


def judged(run: RunDir, limits: Path | None = None) -> JudgedRun:
    """One run with its figures and verdicts; `limits` is a rules file instead of its own.

    Raises:
        RunError: a file is damaged, or the run has observed nothing yet.
    """
    evidence = evidence_of(run)
    if len(evidence.layers) == 0:
        raise RunError(f"{run.path}: has observed nothing yet")
    return JudgedRun(
        directory=run,
        status=str(read_json(run.manifest).get("status", "unknown")),
        config=read_config(run),
        figures={quantity.name: quantity.of(evidence) for quantity in QUANTITIES},
        verdicts=tuple(judge_evidence(evidence, rules_of(run, limits))),
    )


def read_config(run: RunDir) -> dict[str, Any]:
    """The resolved config with dotted keys; `{name: relu, slope: 0}` gives `relu` and `.slope`."""
    try:
        content = yaml.load(run.config.read_bytes(), Loader=_LOADER)  # noqa: S506  both are safe
    except OSError as error:
        raise RunError(f"{run.config}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise RunError(f"{run.config}: is not valid YAML: {error}") from error
    return dict(_flat("", content if isinstance(content, dict) else {}))


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _flat(prefix: str, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if not isinstance(value, dict):
            yield (prefix if key == "name" and prefix else f"{prefix}.{key}".lstrip(".")), value
        else:
            yield from _flat(f"{prefix}.{key}".lstrip("."), value)
