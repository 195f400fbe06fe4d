"""How long a report over many finished runs takes, beside reading the same tables with pandas.

    python scripts/bench_report.py [--runs N] [--template RUN_DIRECTORY ...]

The runs are copies of a few real ones with other seeds and depths in their configs. Each side is a
process of its own, started afresh: imports count. `fresh` has no evidence beside the tables yet,
`finished` has what every finished run leaves there.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from gradexp.analysis.collection import find_runs

TEMPLATE = {
    "name": "bench",
    "data": {"dataset": "digits"},
    "model": {"family": "mlp", "depth": 10, "width": 32},
    "train": {"steps": 100},
}
ACTIVATIONS = ("sigmoid", "relu")
SEEDS = 5

REPORT = """
import sys
from pathlib import Path
from rich.console import Console
from gradexp.report import make_report
html = Path(sys.argv[2]) if len(sys.argv) > 2 else None
Console().print(make_report([Path(sys.argv[1])], html=html).output)
"""
PANDAS = """
import sys
from pathlib import Path
import pandas
rows = sum(len(pandas.read_csv(path)) for path in Path(sys.argv[1]).rglob("*.csv"))
print(f"{rows:,} rows")
"""


def main() -> None:
    """Measure all sides and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--template", type=Path, nargs="+", help="run directories to copy")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        templates = options.template or train_templates(folder / "templates")
        sweep, page = folder / "sweep", folder / "report.html"
        copy_runs(templates, sweep, options.runs)
        sides = {
            "pandas.read_csv of every table": lambda: timed(PANDAS, sweep),
            "report, fresh": lambda: timed(REPORT, sweep),
            "report, finished": lambda: timed(REPORT, sweep),
            "report, finished, with page": lambda: timed(REPORT, sweep, page),
        }
        seconds = {side: measure() for side, measure in sides.items()}
        size = sum(path.stat().st_size for path in sweep.rglob("*.csv")) / 1e6
        print_table(seconds, options.runs, size, page.stat().st_size / 1e6)


def train_templates(folder: Path) -> list[Path]:
    """One short real run per activation."""
    folder.mkdir()
    for activation in ACTIVATIONS:
        config = TEMPLATE | {"model": TEMPLATE["model"] | {"activation": activation}}
        path = folder / f"{activation}.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "gradexp", "run", path, "--out", folder / "runs"]
        subprocess.run(command, check=True, capture_output=True)
    return list(find_runs(folder / "runs"))


def copy_runs(templates: Sequence[Path], sweep: Path, count: int) -> None:
    """Copy the templates until there are `count` runs, each with a depth and seed of its own."""
    for number in range(count):
        source = templates[number % len(templates)]
        target = sweep / "runs" / f"run-{number:05d}"
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("evidence.json", "*.pt"))
        config = yaml.safe_load((source / "config.yaml").read_text())
        cell = number // len(templates)
        config["seed"], config["model"]["depth"] = cell % SEEDS, cell // SEEDS
        (target / "config.yaml").write_text(yaml.safe_dump(config))


def timed(code: str, *arguments: Path) -> float:
    """Seconds that a fresh Python process takes for a piece of code."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True
    )
    return time.perf_counter() - start


def print_table(seconds: dict[str, float], runs: int, size: float, page: float) -> None:
    """One row a side: seconds, milliseconds a run, ratio to pandas."""
    base = next(iter(seconds.values()))
    print(f"{runs:,} runs, {size:.0f} MB of CSV; page {page:.1f} MB")
    print(f"{'':34}{'s':>8}{'ms / run':>10}{'x pandas':>10}")
    for side, taken in seconds.items():
        print(f"{side:34}{taken:8.2f}{1e3 * taken / runs:10.2f}{taken / base:10.2f}")


if __name__ == "__main__":
    main()
