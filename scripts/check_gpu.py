"""Does gradexp do on a GPU what it does on the CPU? One command, one table, exit code 0 or 1.

    python scripts/check_gpu.py [--device cuda|cpu] [--quick] [--only CHECK ...] [--seconds N]

Needs torch 2.11 or later, no network and no files: digits are embedded, the rest is synthetic.

    commands   `run`, `sweep` and `watch` on the device, also after other work on it
    repeats    a run again, and one that was interrupted: byte for byte the same tables
    figures    the same nets on the CPU: every column within its tolerance, at step 0 and later
    waiting    steps in the middle of a chunk never wait for the device
    cost       time of a measured step over a bare eager loop's, in one process, in turns
    parts      every registered part trains on the device

A check that raises is a failed row, and the others go on; so is one for which no time was left.
`--device cpu` is a dry run with tiny sizes: what only a GPU can show is not judged.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from inspect import Parameter
from pathlib import Path

import numpy as np
import torch
import yaml
from gpu_common import (
    FULL,
    TINY,
    Check,
    Row,
    Setting,
    Settings,
    config_of,
    last_words,
    merged,
    settings_of,
    watched_run,
)
from gpu_figures import check_figures, check_repeats
from gpu_steps import check_cost, check_waiting
from rich.console import Console
from rich.table import Table
from timing import conditions

from gradexp.config import REGISTRIES
from gradexp.records import FINISHED, RunDir
from gradexp.train import execute
from gradexp.train.device import make_repeatable

SECONDS = 300.0  # after so many no check is begun


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the checks and print the table; 1 where one failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes; always so on the CPU")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="begin no check after that")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    size = TINY if options.quick or device.type == "cpu" else FULL
    make_repeatable(device)
    began = time.perf_counter()
    rows: list[tuple[str, Row]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            setting = Setting(device, size, Path(folder) / name)
            setting.folder.mkdir()
            left = options.seconds - (time.perf_counter() - began)
            rows += [(name, row) for row in carried_out(name, CHECKS[name], setting, left)]
    print_rows(rows)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    spent = time.perf_counter() - began
    print(f"{name}, CUDA {torch.version.cuda}, {conditions()}; {spent:.0f} s without start-up")
    return int(any(row.ok is False for _, row in rows))


def carried_out(name: str, check: Check, setting: Setting, seconds: float) -> Iterator[Row]:
    """The rows of a check, told on stderr as they come; an error is its last row, a failed one."""
    if seconds <= 0:
        yield Row("the whole check", "not begun: no time was left", "begun", ok=False)
        return
    try:
        for row in check(setting):
            print(f"{name}: {row.what}: {row.figure} [{word(row)}]", file=sys.stderr, flush=True)
            yield row
    except Exception as error:  # noqa: BLE001  whatever it is, the other checks go on
        traceback.print_exc()
        yield Row("the whole check", last_words(error), "no error", ok=False)


def print_rows(rows: Sequence[tuple[str, Row]]) -> None:
    """The table."""
    table = Table("check", "what", "figure", "limit", "ok")
    for name, row in rows:
        table.add_row(name, row.what, row.figure, row.limit, word(row))
    Console(width=160, markup=False, highlight=False).print(table)


def word(row: Row) -> str:
    """How it ended."""
    return {True: "ok", False: "FAILED", None: "-"}[row.ok]


# --- commands ------------------------------------------------------------------------------------

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
AFTER_OTHER_WORK = """
import sys, torch
one = torch.ones(8, 8, device={device!r}, requires_grad=True)
(one @ one).sum().backward()
from gradexp.cli import main
sys.argv[0] = "gradexp"
main()
"""
HALF_TOLERANCE = 0.05  # of a gradient norm in half precision


def check_commands(setting: Setting) -> Iterator[Row]:
    """`watch` in this process; the others as users start them, each in one of its own."""
    yield from check_watch(setting)
    config = setting.folder / "check.yaml"
    config.write_text(yaml.safe_dump(settings_of(setting.size, "mlp")))
    options = [str(config), "--device", setting.device.type]
    code = AFTER_OTHER_WORK.format(device=setting.device.type)
    grid = ["--grid", "model.activation=relu,tanh", "--workers", "2"]
    for what, arguments, runs in (
        ("run", ["-m", "gradexp", "run", *options], 1),
        ("run, after other work on the device", ["-c", code, "run", *options], 1),
        ("sweep, 2 workers", ["-m", "gradexp", "sweep", *options, *grid], 2),
    ):
        yield command(what, arguments, setting, runs)


def command(what: str, arguments: Sequence[str], setting: Setting, runs: int) -> Row:
    """Whether a process of this interpreter ends well, and so many runs in it, on the device."""
    out = setting.folder / what
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop(WORKSPACE, None)  # users have not set it either
    process = subprocess.run(
        [sys.executable, *arguments, "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    good = [path for path in out.rglob("manifest.json") if finished(RunDir(path.parent), setting)]
    figure = f"exit code {process.returncode}, {len(good)} of {runs} finished on the device"
    ok = process.returncode == 0 and len(good) == runs
    if not ok:
        print(process.stdout, process.stderr, file=sys.stderr)
        figure += f": {((process.stderr or process.stdout).strip() or '-').splitlines()[-1]}"
    return Row(what, figure, "0, all", ok)


def finished(run: RunDir, setting: Setting) -> bool:
    """Whether a run ended on the device."""
    manifest = run.read_manifest()
    place = manifest.get("device", {}).get("type")
    return (manifest["status"], place) == (FINISHED, setting.device.type)


def check_watch(setting: Setting) -> Iterator[Row]:
    """A loop of somebody's own; with autocast and a scaler its first gradients are nearly alike."""
    single = watched_run(setting, setting.device, "watched")
    ok = finished(single, setting)
    yield Row("watch", "finished on the device" if ok else "not finished there", "finished", ok)
    half = watched_run(setting, setting.device, "half", half=True)
    found, expected = (
        run.read("gradients").query("step == 0")["grad_norm"].to_numpy() for run in (half, single)
    )
    worst = float(np.abs(found / expected - 1).max())
    what = "watch, autocast and GradScaler: grad_norm against float32"
    yield Row(what, f"{worst:.1e}", f"{HALF_TOLERANCE:.0e}", ok=worst <= HALF_TOLERANCE)


# --- parts ---------------------------------------------------------------------------------------

PLACES = {  # of the parts of a kind in a config
    "activations": ("model", "activation", "name"),
    "augmentations": ("data", "augment", "name"),
    "clips": ("train", "clip", "name"),
    "inits": ("model", "init", "name"),
    "models": ("model", "family"),
    "norms": ("model", "norm", "name"),
    "optimizers": ("train", "optimizer", "name"),
    "residuals": ("model", "residual", "name"),
    "schedules": ("train", "schedule", "name"),
}


def check_parts(setting: Setting) -> Iterator[Row]:
    """Two updates and two probes with every registered part: its kernels are there."""
    for kind, path in PLACES.items():
        entries = list(REGISTRIES[kind])[: setting.size.parts]
        failed: dict[str, str] = {}
        for entry in entries:
            needed = {one.name: 0.1 for one in entry.options if one.default is Parameter.empty}
            try:
                train_with(setting, path, {path[-1]: entry.name, **needed})
            except Exception as error:  # noqa: BLE001  the other parts are tried too
                failed[entry.name] = last_words(error)
        yield from (Row(f"{kind}: {name}", why, "trains", ok=False) for name, why in failed.items())
        count = len(entries)
        yield Row(f"{kind} that train", f"{count - len(failed)} of {count}", "all", ok=not failed)


def train_with(setting: Setting, path: Sequence[str], part: Settings) -> None:
    """A run with one part of its own."""
    for key in reversed(path[1:-1]):
        part = {key: part}
    base: Settings = {
        "data": {"batch_size": 32, "train_examples": 64},
        "train": {"steps": 2},
        "probe": {"every": 2, "examples": 32},
    }
    execute(config_of(merged(base, {path[0]: part}), setting.device), setting.folder)


CHECKS: dict[str, Check] = {
    "commands": check_commands,
    "repeats": check_repeats,
    "figures": check_figures,
    "waiting": check_waiting,
    "cost": check_cost,
    "parts": check_parts,
}


if __name__ == "__main__":
    sys.exit(main())
