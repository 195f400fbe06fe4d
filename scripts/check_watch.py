"""Trains configs twice: by gradexp's own loop, and by a plain torch loop under `gradexp.watch`.

    python scripts/check_watch.py [configs/suite/*.yaml] [--steps N]

Both begin with the same weights and see the same batches. Prints, for each config, the largest
relative difference of each table and both verdicts; ends with exit code 1 if a difference is above
1e-5 or verdicts differ. Not compared: certificates (they need to know the range of inputs), and
test figures (a watched loop has no test set).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import gradexp
from gradexp.config import Config, load_config
from gradexp.records import RunDir
from gradexp.train import execute
from gradexp.train.learner import Learner

LIMIT = 1e-5
SUITE = Path(__file__).parent.parent / "configs" / "suite"
KEYS = ["step", "layer_index"]  # layers of a watched net have names of their own
TABLES = {
    "gradients": ["grad_norm", "clipped_grad_norm", "bias_grad_norm", "weight_norm", "update_norm"],
    "signal": ["pre_mean", "pre_std", "post_mean", "post_std", "pre_grad_norm"],
    "units": ["dead", "born_dead", "no_grad_units", "inactive_fraction"],
    "steps": ["loss", "lr", "grad_norm", "clip_coefficient"],
}
# A mean near 0 is a difference of large numbers: it is compared on the scale of the deviation.
SCALE = {"pre_mean": "pre_std", "post_mean": "post_std"}


def watched(config: Config, out: Path, like: RunDir) -> RunDir:
    """The run of a config by a plain loop under watch, probed at the steps of the other run.

    Parameters lie in memory as in the other run: else sums would be rounded otherwise, and after
    some steps a chaotic net is another one.
    """
    learner = Learner(config, torch.device("cpu"))
    net, optimizer = learner.network, learner._update.optimizer
    train = config.train
    base, schedule, clip = optimizer.param_groups[0]["lr"], train.schedule.make(), train.clip.make()
    total = len(like.read("steps"))
    examples = learner.prober(_examples(like), 10**9).examples
    probes = set(like.read("signal")["step"])
    watch = gradexp.watch(
        net,
        optimizer,
        probe=(examples.inputs, examples.targets),
        loss=F.cross_entropy,
        out=out,
        every=1 if len(probes) > total else max(1, total),
    )
    with watch:
        for step in range(total):
            for group in optimizer.param_groups:
                group["lr"] = base * schedule(step, total)
            inputs, targets = learner.batches.batch(step)
            logits = net(inputs)
            loss = F.cross_entropy(logits, targets)
            loss.backward()
            if clip:
                total_norm = torch.linalg.vector_norm(learner._parameters.gradient_norms())
                clip([one.grad for one in net.parameters()], total_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            watch.step(loss, logits, targets)
    return watch.run


def _examples(run: RunDir) -> int:
    return int(run.read_summary()["probe_examples"])


def differences(ours: RunDir, theirs: RunDir) -> dict[str, float]:
    """The largest relative difference of each table, at the steps that both have."""
    return {table: _difference(ours, theirs, table, columns) for table, columns in TABLES.items()}


def _difference(ours: RunDir, theirs: RunDir, table: str, columns: list[str]) -> float:
    keys = [key for key in KEYS if key in ours.read(table)]
    both = ours.read(table).merge(theirs.read(table), on=keys, suffixes=("", "_watched"))
    if both.empty:
        raise SystemExit(f"{theirs.path}: shares no row of {table} with {ours.path}")
    worst = 0.0
    for column in columns:
        left = both[column].to_numpy(float)
        right = both[f"{column}_watched"].to_numpy(float)
        scale = both[SCALE.get(column, column)].to_numpy(float)
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.where(same, 0.0, np.abs(left - right) / np.abs(scale))
        worst = max(worst, float(np.nan_to_num(relative, nan=np.inf).max()))
    return worst


def compare(config: Config, folder: Path) -> tuple[dict[str, float], list[str], list[str]]:
    """Differences by table, and the verdicts of both."""
    ours = execute(config, folder / "ours").run
    theirs = watched(config, folder / "watched", ours)
    names = [
        [verdict["name"] for verdict in run.read_summary()["verdicts"]] for run in (ours, theirs)
    ]
    return differences(ours, theirs), names[0], names[1]


def main() -> None:
    """Compare every config and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("configs", nargs="*", type=Path, default=sorted(SUITE.glob("*.yaml")))
    parser.add_argument("--steps", type=int, help="train each for so many steps")
    options = parser.parse_args()
    failed = 0
    for path in options.configs:
        settings = [f"train.steps={options.steps}"] if options.steps else []
        if load_config(path, settings).train.steps == 0:
            print(f"--   {path.stem:32s} is observed, not trained: there is no loop to watch")
            continue
        with tempfile.TemporaryDirectory() as folder:
            found, ours, theirs = compare(load_config(path, settings), Path(folder))
        good = max(found.values()) <= LIMIT and ours == theirs
        failed += not good
        shown = "  ".join(f"{table} {value:.1e}" for table, value in found.items())
        said = ", ".join(ours) if ours == theirs else f"{', '.join(ours)} / {', '.join(theirs)}"
        print(f"{'ok ' if good else 'BAD'}  {path.stem:32s} {shown}  {said}", flush=True)
    print(f"{failed} of {len(options.configs)} do not agree" if failed else "all agree")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
