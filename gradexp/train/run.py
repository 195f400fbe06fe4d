"""One run: its directory, its end on record, and going on where an earlier attempt stopped."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradexp.analysis import conclude, judge_again, load_rules, own_rules, take_rules
from gradexp.config import Config, run_id, to_yaml
from gradexp.errors import RunError
from gradexp.imports import fingerprint
from gradexp.recorder import Ending, Life, environment, write_layers
from gradexp.records import RunDir, write_atomically
from gradexp.train import checkpoint
from gradexp.train.device import make_repeatable, pick
from gradexp.train.learner import Learner
from gradexp.train.loop import Loop
from gradexp.train.observer import Observer

CHECKPOINT_SECONDS = 15.0


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    `already_done`: an earlier call had finished it, nothing was computed. `resumed_from`: the step
    of the checkpoint it went on from. `begun_anew`: why an interrupted run could not go on.
    """

    run: RunDir
    already_done: bool = False
    resumed_from: int | None = None
    begun_anew: str | None = None


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
        ConfigError: the device is not available, the data set too small, or a rules file wrong.
        DataError: the data set is missing or damaged.
        RunError: the directory is in use or cannot be written.
    """
    run = run_dir(config, parent)
    if config.rules:
        load_rules(Path(config.rules))
    with run.locked():
        if fresh:
            run.clear(_named_files(config))
        if run.done():
            judge_again(run, config)
            outcome = Outcome(run, already_done=True)
        else:
            outcome = _carry_out(config, run, observer or Observer(), checkpoint_seconds)
        run.checkpoint.unlink(missing_ok=True)  # not before the end is on record
        return outcome


def _carry_out(config: Config, run: RunDir, observer: Observer, seconds: float) -> Outcome:
    device = pick(config.device)
    make_repeatable(device)
    state, lost = _found(run, device)
    life = _begin(config, run, device, state)
    try:
        with life.on_record():
            learner = Learner(config, device)
            life.manifest["data"] = {
                "fingerprint": learner.data.fingerprint,
                "notes": list(learner.data.notes),
            }
            write_layers(run, learner.layers)
            loop = Loop(config, run, learner, state or {}, observer)
            with checkpoint.Checkpoints(run, seconds) as checkpoints:
                loop.run(checkpoints)
                ending = Ending(len(loop.prober.examples), loop.ends.first, loop.ends.diverged)
                conclude(run, loop.figures() | ending.figures())
            step = loop.step
            done = f"diverged at step {step}" if ending.diverged else f"finished {step} steps"
            life.manifest |= ending.status(done)
    finally:
        observer.closed()
    return Outcome(run, resumed_from=state["step"] if state else None, begun_anew=lost)


def _found(run: RunDir, device: Any) -> tuple[checkpoint.State | None, str | None]:
    """The state to go on from; where an earlier attempt left none that can be used, why."""
    try:
        return checkpoint.load(run, device), None
    except RunError as error:
        return None, str(error)


def _begin(config: Config, run: RunDir, device: Any, state: Any) -> Life:
    """Write what identifies the run; without a checkpoint, clear away an earlier attempt."""
    earlier = run.read_manifest() if state else {}
    if not state:
        run.clear(_named_files(config))
    run.remove_leftovers()
    for path in config.imports:
        with contextlib.suppress(shutil.SameFileError):
            shutil.copy(path, run.path)
    write_atomically(run.config, to_yaml(config).encode())
    take_rules(run, config)
    content = {
        "name": config.name,
        "id": run_id(config),
        "imports": {Path(path).name: fingerprint(Path(path)) for path in config.imports},
        "own_rules": own_rules(Path(path) for path in config.imports),
        **environment(device),
    }
    return Life(run, earlier, content)


def _named_files(config: Config) -> list[Path]:
    """What the config needs beside itself; of a run directory's own config, files of the run."""
    return [Path(path) for path in (*config.imports, config.rules) if path]
