"""Evidence is gathered once: it is kept beside the tables until one of them changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gradexp.analysis import decay
from gradexp.analysis import evidence as evidence_module
from gradexp.analysis.decay import Depth
from gradexp.analysis.evidence import (
    Curve,
    Evidence,
    FirstNonFinite,
    Gradients,
    Layers,
    Probes,
    Totals,
    gather,
)
from gradexp.errors import RunError
from gradexp.records import TABLES, RunDir, files, tables, write_atomically

T = TypeVar("T", Probes, Depth, Gradients, Curve)


def evidence_of(run: RunDir) -> Evidence:
    """The evidence of a run, from the copy beside its tables when that is up to date."""
    path = run.evidence
    key = _key(run)
    kept = _read(path)
    if kept.get("key") == key:
        return _decode(kept["evidence"])
    encoded = _encode(gather(run))
    with contextlib.suppress(RunError):  # a report of a read-only directory works without a copy
        write_atomically(path, json.dumps({"key": key, "evidence": encoded}).encode())
    return _decode(encoded)


@cache
def gathering() -> str:
    """A hash of the code that gathers evidence: where that changes, no copy serves any more."""
    digest = hashlib.sha256()
    for module in (decay, evidence_module, files, tables):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]


def _key(run: RunDir) -> list[int | str]:
    """How evidence is gathered, and the state of all tables: their sizes and times of change."""
    key: list[int | str] = [gathering()]
    for table in TABLES:
        try:
            stat = run.table_path(table).stat()
        except FileNotFoundError:
            key += [0, 0]
        else:
            key += [stat.st_size, stat.st_mtime_ns]
    return key


def _read(path: Path) -> dict[str, Any]:
    """The kept copy; empty when there is none or it is damaged: it can always be made again."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(path.read_bytes()))
    return {}


def _encode(evidence: Evidence) -> dict[str, Any]:
    """Plain data; arrays keep six significant digits."""
    return {name: _plain(part) for name, part in asdict(evidence).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        rounded = np.array([float(f"{x:.6g}") for x in value.ravel().tolist()])
        return rounded.reshape(value.shape).tolist()
    return value


def _decode(plain: dict[str, Any]) -> Evidence:
    layers = plain["layers"]
    names, kind, activation, norm = (
        tuple(layers[name]) for name in ("layer", "kind", "activation", "norm")
    )
    totals = plain["totals"] | {"loss_quarters": tuple(plain["totals"]["loss_quarters"])}
    depth = len(layers["layer"])
    units, saturates = (np.array(layers[name], dtype=np.float64) for name in ("units", "saturates"))
    return Evidence(
        Layers(names, kind, activation, norm, units, saturates),
        _arrays(Probes, plain["probes"], depth),
        _arrays(Depth, plain["depth"], None),
        _arrays(Gradients, plain["gradients"], depth),
        _arrays(Curve, plain["curve"], None),
        Totals(**totals),
        FirstNonFinite(**plain["non_finite"]) if plain["non_finite"] else None,
        {
            name: np.array(values, dtype=np.float64).reshape(len(plain["probes"]["step"]), depth)
            for name, values in plain["added"].items()
        },
    )


def _arrays(cls: type[T], plain: dict[str, Any], depth: int | None) -> T:
    """Lists back as arrays: `step` and all columns without layers have one dimension."""
    return cls(
        **{
            field.name: np.array(plain[field.name], dtype=np.float64).reshape(
                (-1,) if depth is None or field.name == "step" else (len(plain["step"]), depth)
            )
            for field in fields(cls)
        }
    )
