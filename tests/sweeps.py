"""Small sweeps for tests: a data set that can fail on demand, and what of a sweep must repeat."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gradexp.records import TABLES

PATIENCE = 180.0  # seconds: far beyond what anything here takes, however busy the machine is

PARTS = """
from functools import partial
import json
import os
import signal
import time
from pathlib import Path

import torch

from gradexp.data import DATASETS, Dataset
from gradexp.data.catalogue import Splits
from gradexp.optim.schedules import SCHEDULES


def _load(mode, marker):
    if mode == "error":
        raise ValueError("this cell is meant to fail")
    if mode == "memory":
        raise MemoryError("far too much")
    if mode == "killed" or (mode == "killed_once" and not Path(marker).exists()):
        if marker:
            Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "witness":
        Path(marker).write_text(json.dumps({
            "threads": torch.get_num_threads(),
            "omp": os.environ["OMP_NUM_THREADS"],
            "pid": os.getpid(),
            "group": os.getpgid(0),
            "session": os.getsid(0),
            "polite kill ends it": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        }))
    if mode == "lingers":
        try:
            Path(marker + ".begun").touch()
            time.sleep(1000)
        except KeyboardInterrupt:
            time.sleep(1)
            Path(marker).touch()
            raise
    while mode == "waits":
        time.sleep(1)
    while mode == "deaf":
        try:
            time.sleep(1)
        except KeyboardInterrupt:
            continue
    if mode == "together":
        Path(marker).mkdir(exist_ok=True)
        Path(marker, str(os.getpid())).touch()
        while len(list(Path(marker).iterdir())) < 2:
            time.sleep(0.01)
    random = torch.Generator().manual_seed(0)
    images = torch.rand((320, 1, 4, 4), generator=random)
    targets = (images.flatten(1).sum(1) * 1.3).long() % 4
    return Splits(images[:256], targets[:256], images[256:], targets[256:])


@DATASETS.register("fragile")
def fragile(*, mode: str = "fine", marker: str = "") -> Dataset:
    "Random images; modes fail, wait for another cell, tell of their process, or end never."
    return Dataset("fragile", (1, 4, 4), 4, partial(_load, mode, marker))


@SCHEDULES.register("patient")
def patient(*, marker: str):
    "Stands still at step 1000 as long as the marker is there: so long it can be interrupted."
    def factor(step, total):
        while step == 1000 and Path(marker).exists():
            time.sleep(0.01)
        return 1.0

    return factor
"""

CONFIG = """
name: tiny
imports: [parts.py]
device: cpu
data: {dataset: fragile, batch_size: 16}
model: {family: mlp, depth: 3, width: 8, activation: relu}
train: {steps: 100, optimizer: {name: sgd, lr: 0.1, momentum: 0.9}}
probe: {every: 20, examples: 64}
"""

DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from gradexp.errors import GradexpError
from gradexp.sweeps import SweepOptions, plan_sweep, run_sweep, sweep_view

config, out, workers, checkpoint_seconds, *grid = sys.argv[1:]
plan = plan_sweep(Path(config), [], grid, None)
options = SweepOptions(workers=int(workers), checkpoint_seconds=float(checkpoint_seconds))
try:
    outcome = run_sweep(plan, Path(out), options, sweep_view(Console(stderr=True)))
except GradexpError as error:
    sys.exit(str(error))
sys.exit(outcome.exit_code)
"""


def write_config(folder: Path, sweep: str = "", name: str = "tiny.yaml") -> Path:
    """A config of a tiny net on the fragile data set."""
    (folder / "parts.py").write_text(PARTS)
    path = folder / name
    path.write_text(CONFIG + sweep)
    return path


def start(
    config: Path,
    out: Path,
    *grid: str,
    workers: int = 2,
    checkpoint_seconds: float = 0.05,
    **environment: str,
) -> subprocess.Popen[str]:
    """A sweep in a process of its own; whoever starts it sees to its end, as `begin` does."""
    arguments = [str(config), str(out), str(workers), str(checkpoint_seconds), *grid]
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", DRIVER, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            **environment,
        },
    )


def end(process: subprocess.Popen[str]) -> None:
    """Kill a sweep with its workers, stopped ones too, whatever state it is in."""
    for pid in [*workers_of(process), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            if process.poll() is None:
                os.kill(pid, signal.SIGKILL)
    process.communicate()


def wait_until(reached: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for a moment in the life of a sweep; fail with what it said if it never comes."""
    give_up = time.monotonic() + PATIENCE
    while not reached():
        if process.poll() is not None or time.monotonic() > give_up:
            end_code = process.poll()
            process.kill()
            pytest.fail(f"it never came to that ({end_code}): {process.communicate()[1]}")
        time.sleep(0.005)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The process ids of the workers that a sweep has now."""
    listing = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        return [int(pid) for pid in listing.read_text().split()]
    except OSError:
        return []


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def states(out: Path) -> list[str]:
    """The state of every run, in the order of `runs.csv`."""
    return [row["status"] for row in rows(out / "runs.csv")]


def repeatable(out: Path) -> dict[str, object]:
    """Everything of a sweep that must be the same each time: all files, without times."""
    content: dict[str, object] = {
        "plan.csv": (out / "plan.csv").read_text(),
        "runs.csv": _without(["seconds"], out / "runs.csv"),
    }
    for path in sorted((out / "runs").glob("*/*")):
        content[str(path.relative_to(out))] = _repeatable_file(path)
    return content


def _repeatable_file(path: Path) -> object:
    if path.suffix == ".csv":
        table = TABLES[path.stem]
        return _without([column.name for column in table.columns if column.timing], path)
    if path.name == "manifest.json":
        manifest = json.loads(path.read_text())
        return {key: manifest[key] for key in ("status", "id", "outcome", "data")}
    if path.name == "evidence.json":
        return None
    return path.read_bytes()


def _without(columns: list[str], path: Path) -> str:
    """The text of a CSV file without some columns; a damaged one would differ in its rows."""
    reader = csv.DictReader(io.StringIO(path.read_text()))
    assert reader.fieldnames
    kept = [name for name in reader.fieldnames if name not in columns]
    return "\n".join(",".join(str(row[name]) for name in kept) for row in reader)
