"""Precision and recall of the rules on the labelled suite, beside published limits of other tools.

    python scripts/score_rules.py [--seeds SEED ...] [--tables DIRECTORY] [--cache FILE]

Every config of configs/suite says on its first line what is expected. Without --tables the suite is
run from scratch. All tools judge the same tables. The other tools' limits are applied in two ways,
at any observed step and at half of them or more, and the better of the two counts. Their mean of
|gradient| is taken as grad_norm / sqrt(parameters), which is never below the true mean.
"""

from __future__ import annotations

import argparse
import io
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gradexp.analysis import HEALTHY, judge
from gradexp.analysis.collection import find_runs
from gradexp.records import TABLES, RunDir

SUITE = Path(__file__).parent.parent / "configs" / "suite"
SICKNESSES = ("vanishing", "exploding", "dying")
KEPT = ("config.yaml", "manifest.json", *(table.file_name for table in TABLES.values()))

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Facts:
    """What the published rules look at; one row per observed step or probe, a column per layer."""

    mean_gradient: Array
    gradient_norm: Array
    dead: Array
    zero_gradients: Array
    inactive: Array

    @property
    def first_to_last(self) -> Array:
        """The mean gradient of the first layer over that of the last, [steps, 1]."""
        with np.errstate(all="ignore"):
            return self.mean_gradient[:, :1] / self.mean_gradient[:, -1:]

    @property
    def non_finite(self) -> Array:
        """Where a gradient is nan or infinite."""
        return ~np.isfinite(self.gradient_norm)

    def four_in_a_row(self, factor: float) -> Array:
        """Where the mean gradient changes by a factor in four layers in a row, toward the input.

        Along depth, not along steps: that reading suits the rule better.
        """
        with np.errstate(all="ignore"):
            change = self.mean_gradient[:, :-1] / self.mean_gradient[:, 1:]
        hit = change <= factor if factor < 1 else change >= factor
        starts = max(0, hit.shape[1] - 3)
        return np.logical_and.reduce([hit[:, i : starts + i] for i in range(4)])


Sign = Callable[[Facts], Array]

OTHERS: dict[str, dict[str, Sequence[Sign]]] = {
    "SageMaker Debugger": {
        "vanishing": [lambda f: f.mean_gradient < 1e-7],
        "exploding": [lambda f: f.non_finite],
        "dying": [lambda f: f.dead > 0.5],
    },
    "AutoTrainer": {
        "vanishing": [lambda f: (f.first_to_last < 1e-3) & (f.mean_gradient[:, :1] < 1e-4)],
        "exploding": [lambda f: f.first_to_last > 70, lambda f: f.non_finite],
        "dying": [lambda f: f.zero_gradients >= 0.7],
    },
    "TheDeepChecker": {
        "vanishing": [lambda f: f.mean_gradient < 1e-6, lambda f: f.four_in_a_row(0.5)],
        "exploding": [lambda f: f.mean_gradient > 1e6, lambda f: f.four_in_a_row(2.0)],
        "dying": [lambda f: f.dead > 0.5],
    },
    "DeepDiagnosis": {
        "vanishing": [lambda f: f.mean_gradient < 1e-7],
        "exploding": [lambda f: f.non_finite],
        "dying": [lambda f: f.inactive >= 0.7],
    },
    "torchmortem": {
        "vanishing": [lambda f: f.first_to_last <= 1e-2],
        "exploding": [lambda f: f.gradient_norm > 1000],
        "dying": [lambda f: f.inactive > 0.5],
    },
}


def facts(run: RunDir) -> Facts:
    """Read the tables of a run into arrays."""
    layers, gradients, units = (run.read(name) for name in ("layers", "gradients", "units"))
    norms = gradients.pivot_table(
        index="step", columns="layer_index", values="grad_norm", dropna=False
    )
    norm = norms.to_numpy(dtype=float)
    size = np.sqrt(layers["parameters"].to_numpy(dtype=float))
    probes = units["step"].nunique()

    def share(name: str) -> Array:
        return units[name].to_numpy(dtype=float, na_value=np.nan).reshape(probes, -1)

    return Facts(
        mean_gradient=norm / size[: norm.shape[1]],
        gradient_norm=norm,
        dead=share("dead") / share("units"),
        zero_gradients=share("zero_grad_fraction"),
        inactive=share("inactive_fraction"),
    )


def alarms_of_others(seen: Facts, limits: dict[str, Sequence[Sign]], share: float) -> set[str]:
    """Sicknesses of which some layer shows a sign at more than `share` of the steps."""
    return {
        sickness
        for sickness, signs in limits.items()
        if any(_shown(sign(seen), share) for sign in signs)
    }


def _shown(hits: Array, share: float) -> bool:
    return bool(hits.size) and float(hits.any(axis=1).mean()) > share


def expected_of(config: Path) -> set[str]:
    """The label on a config's first line; empty for a healthy one."""
    found = re.match(r"# expected: (.+)\n", config.read_text())
    if found is None:
        raise SystemExit(f"{config}: the first line must be '# expected: VERDICT, ...'")
    return set(found[1].split(", ")) - {HEALTHY}


def name_of(run: RunDir) -> str:
    """The name in the run's config, which is that of the suite's file."""
    return str(run.read_manifest()["name"])


def alarms_of_ours(run: RunDir) -> set[str]:
    """The verdicts above a note."""
    return {verdict.name for verdict in judge(run) if verdict.alarm}


def run_suite(folder: Path, seeds: Sequence[int]) -> None:
    """Run every config from scratch, in two processes of one thread each."""
    configs = sorted(SUITE.glob("*.yaml"))
    jobs = [(config, seed, folder) for config in configs for seed in seeds]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        list(pool.map(_run, jobs))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _run(job: tuple[Path, int, Path]) -> None:
    from gradexp.config import load_config
    from gradexp.train import execute

    config, seed, folder = job
    execute(load_config(config, [f"seed={seed}", "device=cpu"]), folder)


def cache(runs: Sequence[RunDir], file: Path) -> None:
    """Keep tables for the tests, numbers cut to four digits."""
    with tarfile.open(file, "w:xz") as archive:
        for run in runs:
            for name in KEPT:
                _add(archive, f"{name_of(run)}/{name}", (run.path / name).read_text())


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    short = re.sub(r"-?\d+\.\d{4,}(e[-+]\d+)?", lambda found: f"{float(found[0]):.4g}", text)
    entry = tarfile.TarInfo(name)
    entry.size = len(short.encode())
    archive.addfile(entry, io.BytesIO(short.encode()))


@dataclass
class Score:
    """Hits, false alarms and misses."""

    hits: int = 0
    false: int = 0
    missed: int = 0

    def add(self, found: set[str], expected: set[str], names: Iterable[str]) -> None:
        """Count one run."""
        for name in names:
            self.hits += name in found and name in expected
            self.false += name in found and name not in expected
            self.missed += name not in found and name in expected

    @property
    def precision(self) -> float:
        """The share of alarms that were right."""
        return self.hits / max(1, self.hits + self.false)

    @property
    def recall(self) -> float:
        """The share of sicknesses that were found."""
        return self.hits / max(1, self.hits + self.missed)

    @property
    def f1(self) -> float:
        """The harmonic mean of both."""
        return 2 * self.hits / max(1, 2 * self.hits + self.false + self.missed)


def score(found: Sequence[set[str]], expected: Sequence[set[str]], names: Sequence[str]) -> Score:
    """One score over all runs."""
    total = Score()
    for alarms, label in zip(found, expected, strict=True):
        total.add(alarms, label, names)
    return total


def best_reading(seen: Sequence[Facts], expected: Sequence[set[str]], tool: str) -> list[set[str]]:
    """A tool's alarms under the reading of its limits that suits it best."""
    readings = [[alarms_of_others(f, OTHERS[tool], share) for f in seen] for share in (0.0, 0.49)]
    return max(readings, key=lambda found: score(found, expected, SICKNESSES).f1)


def report(runs: Sequence[RunDir]) -> None:
    """Print one row a tool, then our scores for the other verdicts and our mistakes."""
    expected = [expected_of(SUITE / f"{name_of(run)}.yaml") for run in runs]
    seen = [facts(run) for run in runs]
    ours = [alarms_of_ours(run) for run in runs]
    tools = {"gradexp": ours} | {tool: best_reading(seen, expected, tool) for tool in OTHERS}
    print(f"{len(runs)} runs, {sum(not label for label in expected)} of them healthy")
    print(
        f"{'precision / recall':20}" + "".join(f"{name:>16}" for name in (*SICKNESSES, "all three"))
    )
    for tool, found in tools.items():
        groups = [(name,) for name in SICKNESSES] + [SICKNESSES]
        scores = [score(found, expected, names) for names in groups]
        print(f"{tool:20}" + "".join(f"{s.precision:>9.2f} / {s.recall:.2f}" for s in scores))
    for name in ("saturated", "stalled", "diverged"):
        total = score(ours, expected, (name,))
        print(f"gradexp, {name}: {total.precision:.2f} / {total.recall:.2f}")
    for run, found, label in zip(runs, ours, expected, strict=True):
        if found != label:
            print(f"{run.path.name}: expected {sorted(label)}, found {sorted(found)}")


def main() -> None:
    """Run or read the suite and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tables", type=Path, help="runs of the suite, instead of running it")
    parser.add_argument("--cache", type=Path, help="write the tables here, for the tests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.tables or Path(name)
        if not options.tables:
            run_suite(folder, options.seeds)
        runs = [RunDir(path) for path in find_runs(folder)]
        report(runs)
        if options.cache:
            cache(runs, options.cache)


if __name__ == "__main__":
    main()
