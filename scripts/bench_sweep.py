"""What a sweep costs: against a shell loop of one process per run, and per worker added.

Three measurements in one run, each with its conditions:

1. The same cells (digits, MLPs of depth 5 to 20) by a loop of `gradexp run` processes, by a sweep
   with one worker, and by a sweep with two.
2. Planning 10,000 cells.
3. A resume of 10,000 cells that are all finished: what skipping costs.

Times are wall-clock seconds; the import of torch counts in the first measurement and happens in
neither of the others.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gradexp.records import RunDir
from gradexp.sweeps import Plan, SweepOptions, plan_sweep, run_sweep

CONFIG = """\
name: bench
device: cpu
data: {{dataset: digits, batch_size: 64}}
model: {{family: mlp, width: 64, activation: tanh}}
train: {{epochs: {epochs}, optimizer: {{name: sgd, lr: 0.02, momentum: 0.9}}}}
"""
DEPTHS = (5, 8, 11, 14, 17, 20)


def main() -> None:
    """Measure, and print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=48, help="how many runs")
    parser.add_argument("--epochs", type=int, default=125, help="work of each run")
    parser.add_argument("--many", type=int, default=10_000, help="cells to plan and to skip")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.platform()}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bench.yaml")
        path.write_text(CONFIG.format(epochs=options.epochs))
        against_a_loop(path, options.cells, options.epochs)
        planning_and_skipping(path, options.many)


def against_a_loop(path: Path, cells: int, epochs: int) -> None:
    """One process per run, one worker, two workers: the same cells."""
    depths = ",".join(map(str, DEPTHS))
    seeds = max(1, cells // len(DEPTHS))
    plan = plan_sweep(path, [], [f"model.depth={depths}"], seeds)
    print(f"{len(plan.cells)} cells: digits, MLPs of depth {depths}, {epochs} epochs")
    one = _timed("sweep --workers 1", lambda: _sweep(plan, path.with_name("one"), 1))
    two = _timed("sweep --workers 2", lambda: _sweep(plan, path.with_name("two"), 2))
    loop = _timed("loop of processes", lambda: _loop(plan, path))
    print(f"two workers against the loop: {loop / two:.2f} times faster")
    print(f"from one worker to two: {one / two:.2f} times faster")


def _timed(what: str, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    print(f"{what}: {seconds:.1f} s", flush=True)
    return seconds


def _sweep(plan: Plan, out: Path, workers: int) -> None:
    outcome = run_sweep(plan, out, SweepOptions(workers=workers))
    if outcome.exit_code:
        sys.exit(f"a cell failed: {outcome.failures}")


def _loop(plan: Plan, path: Path) -> None:
    for cell in plan.cells:
        depth = f"model.depth={cell.axes['model.depth']}"
        seed = f"seed={cell.config.seed}"
        command = [sys.executable, "-m", "gradexp", "run", str(path)]
        subprocess.run(
            [*command, "--set", depth, "--set", seed, "--out", str(path.with_name("loop"))],
            check=True,
            capture_output=True,
        )


def planning_and_skipping(path: Path, many: int) -> None:
    """Plan many cells; then find them all finished."""
    plans: list[Plan] = []

    def plan() -> None:
        plans.append(plan_sweep(path, [], ["model.depth=1,2,3,4"], many // 4))

    _timed(f"planning {many:,} cells", plan)
    out = path.with_name("many")
    _fabricate(plans[0], next(path.with_name("two").glob("runs/*")), out / "runs")
    outcome: list[int] = []
    skip = _timed(
        f"resuming {many:,} finished cells",
        lambda: outcome.append(run_sweep(plans[0], out).already_done),
    )
    print(f"skipped {outcome[0]:,} cells, {1e6 * skip / many:.0f} us each")


def _fabricate(plan: Plan, finished: Path, runs: Path) -> None:
    """Run directories that say that they are finished, as one that is."""
    for cell in plan.cells:
        run = RunDir(runs / cell.run)
        run.path.mkdir(parents=True)
        shutil.copy(finished / run.manifest.name, run.manifest)
        shutil.copy(finished / run.summary.name, run.summary)


if __name__ == "__main__":
    main()
