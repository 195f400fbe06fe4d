"""One run: its directory, its end on record, and going on where an earlier attempt stopped."""

from __future__ import annotations

import contextlib
import shutil
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gradexp.analysis import judge, reading
from gradexp.config import Config, run_id, to_yaml
from gradexp.config.load import fingerprint
from gradexp.errors import GradexpError
from gradexp.recorder import write_layers
from gradexp.records import DIVERGED, FAILED, FINISHED, RUNNING, RunDir, write_atomically
from gradexp.train import checkpoint
from gradexp.train.device import environment, make_repeatable, pick
from gradexp.train.learner import Learner
from gradexp.train.loop import Loop
from gradexp.train.observer import Observer

CHECKPOINT_SECONDS = 15.0


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    `already_done`: an earlier call had finished it, nothing was computed. `resumed_from`: the step
    of the checkpoint it went on from.
    """

    run: RunDir
    already_done: bool = False
    resumed_from: int | None = None


def run_dir(config: Config, parent: Path) -> RunDir:
    """Where that run lies, or will lie: `<name>-<id>`."""
    return RunDir(parent / f"{config.name}-{run_id(config)}")


def execute(
    config: Config,
    parent: Path,
    *,
    fresh: bool = False,
    observer: Observer | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Outcome:
    """Carry out a run, go on with it, or find it finished.

    Args:
        config: what to run.
        parent: the folder in which the run directory lies.
        fresh: begin anew, whatever is there.
        observer: hears of the progress.
        checkpoint_seconds: the longest time whose work a kill can cost.

    Raises:
        ConfigError: the device is not available, or the data set too small.
        DataError: the data set is missing or damaged.
        RunError: the directory is in use or cannot be written.
    """
    run = run_dir(config, parent)
    with run.locked():
        if fresh:
            run.clear()
        if run.done():
            return Outcome(run, already_done=True)
        return _carry_out(config, run, observer or Observer(), checkpoint_seconds)


def _carry_out(config: Config, run: RunDir, observer: Observer, seconds: float) -> Outcome:
    device = pick(config.device)
    make_repeatable(device)
    state = checkpoint.load(run, device) if run.status() is not None else None
    manifest = _begin(config, run, device, state)
    try:
        with _failure_on_record(run, manifest):
            learner = Learner(config, device)
            manifest["data"] = {
                "fingerprint": learner.data.fingerprint,
                "notes": list(learner.data.notes),
            }
            write_layers(run, learner.layers)
            loop = Loop(config, run, learner, state or {}, observer)
            with checkpoint.Checkpoints(run, seconds) as checkpoints:
                loop.run(checkpoints)
                _end(run, manifest, loop)
    finally:
        observer.closed()
    return Outcome(run, resumed_from=state["step"] if state else None)


def _begin(config: Config, run: RunDir, device: Any, state: Any) -> dict[str, Any]:
    """Write what identifies the run; without a checkpoint, clear away an earlier attempt."""
    earlier = run.read_manifest() if state else {}
    if not state:
        run.clear()
    run.remove_leftovers()
    for path in config.imports:
        shutil.copy(path, run.path)
    write_atomically(run.config, to_yaml(config).encode())
    manifest = {
        "status": RUNNING,
        "name": config.name,
        "id": run_id(config),
        "started": earlier.get("started", _now()),
        "seconds": earlier.get("seconds", 0.0),
        "imports": {Path(path).name: fingerprint(Path(path)) for path in config.imports},
        **environment(device),
    }
    run.write_manifest(manifest)
    return manifest


@contextlib.contextmanager
def _failure_on_record(run: RunDir, manifest: dict[str, Any]) -> Iterator[None]:
    """Keep the time; when an error ends the run, leave its text and traceback in the directory."""
    began = time.monotonic()
    try:
        yield
    except Exception as error:
        if not isinstance(error, GradexpError):
            write_atomically(run.path / "traceback.txt", traceback.format_exc().encode())
        manifest |= {"status": FAILED, "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        manifest["seconds"] = round(manifest["seconds"] + time.monotonic() - began, 3)
        manifest["ended"] = _now()
        run.write_manifest(manifest)


def _end(run: RunDir, manifest: dict[str, Any], loop: Loop) -> None:
    """Judge the run by its tables; say that it is over when everything else is written."""
    run.write_summary(_summary(run, loop))
    run.write_summary(
        {
            **run.read_summary(),
            "reading": reading(run),
            "verdicts": [verdict.as_dict() for verdict in judge(run)],
        }
    )
    run.checkpoint.unlink(missing_ok=True)
    manifest |= {"status": DIVERGED if loop.ends.diverged else FINISHED, "outcome": _outcome(loop)}


def _outcome(loop: Loop) -> str:
    done = f"diverged at step {loop.step}" if loop.ends.diverged else f"finished {loop.step} steps"
    return f"{done}; {loop.ends.first.sentence()}" if loop.ends.first else done


def _summary(run: RunDir, loop: Loop) -> dict[str, Any]:
    units = run.read("units")
    last = units[units["step"] == units["step"].max()]
    examples = len(loop.prober.examples)
    return {
        **loop.figures(),
        "units": int(last["units"].sum()),
        "dead_units": int(last["dead"].sum()) if last["dead"].notna().any() else None,
        "probe_examples": examples,
        # The rule of three: none of n examples, so with 95 % confidence fewer than 3 / n of all.
        "dead_unit_fires_on_less_than": 3 / examples,
        "nonfinite": loop.ends.first.as_dict() if loop.ends.first else None,
        "diverged": loop.ends.diverged.as_dict() if loop.ends.diverged else None,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
