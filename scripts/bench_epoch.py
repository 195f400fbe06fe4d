"""One epoch of MNIST with all gradient norms at every step: gradexp, and how people write it today.

    GRADEXP_DATA=FOLDER python scripts/bench_epoch.py [--rounds N] [--workers N]

MLP 20 x 128, batch 128, evaluation on the test set at the end. The sides take turns, N rounds; the
first round of all is not counted. gradexp is timed from config to finished run directory, loading
of the data, probes and verdicts included; the usual script from opening the data set to closing
its CSV file; the bare loop (tensors in memory, default SGD) without loading, logging, evaluation.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
from timing import Times, conditions, print_table, timed
from torch import nn
from torch.nn import functional as F

from gradexp.config import Source, resolve
from gradexp.data import Batches
from gradexp.train import execute
from gradexp.train.learner import load_data

DEPTH, WIDTH, BATCH, LR = 20, 128, 128, 0.05
CONFIG = {
    "name": "bench-epoch",
    "device": "cpu",
    "data": {"dataset": "mnist", "batch_size": BATCH},
    "model": {"family": "mlp", "depth": DEPTH, "width": WIDTH},
    "train": {"epochs": 1, "optimizer": {"name": "sgd", "lr": LR}},
}


def main() -> None:
    """Measure all sides in turn and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of the DataLoader")
    options = parser.parse_args()
    config = resolve(Source(CONFIG))
    batches = Batches(
        load_data(config, torch.device("cpu")), BATCH, config.data.augment.make(), seed=0
    )
    sides = {
        "bare loop in memory": lambda: bare_epoch(batches),
        "gradexp": lambda: gradexp_epoch(config),
    }
    for workers in options.workers:
        name = f"usual script, {workers} workers"
        sides[name] = partial(usual_epoch, workers)
        sides[f"{name}, forward hooks"] = partial(usual_epoch, workers, hooks=True)
    times: Times = {side: [] for side in sides}
    for counted in range(-1, options.rounds):
        for side, work in sides.items():
            seconds = timed(work)
            if counted >= 0:
                times[side].append(seconds)
    report(times, options.rounds)


def report(times: Times, rounds: int) -> None:
    """One row a side, with ratios of medians."""
    medians = {side: statistics.median(seconds) for side, seconds in times.items()}
    bare, ours = medians["bare loop in memory"], medians["gradexp"]
    rows = [
        (
            side,
            f"{taken:.2f}",
            f"{min(times[side]):.2f} .. {max(times[side]):.2f}",
            f"{taken / bare:.2f}",
            f"{taken / ours:.2f}",
        )
        for side, taken in medians.items()
    ]
    title = f"One epoch of MNIST, MLP {DEPTH} x {WIDTH}, batch {BATCH}; {rounds} rounds"
    print_table(title, ("side", "median s", "range", "x bare", "x gradexp"), rows)
    print(conditions())


def gradexp_epoch(config: object) -> None:
    """A whole run, with everything it writes."""
    with tempfile.TemporaryDirectory() as folder:
        execute(config, Path(folder))


def bare_epoch(batches: Batches) -> None:
    """Train and nothing else."""
    net = usual_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    for step in range(batches.per_epoch):
        inputs, targets = batches.batch(step)
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        optimizer.step()


def usual_epoch(workers: int, *, hooks: bool = False) -> None:
    """The script of many tutorials: DataLoader, `.item()` per parameter, csv.

    With hooks it notes the deviation of every layer's output too.
    """
    train, test = (usual_loader(train=train, workers=workers) for train in (True, False))
    net = usual_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    with tempfile.TemporaryFile("w", newline="") as file:
        writer = csv.writer(file)

        def note(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            writer.writerow((module, output.std().item()))

        for module in net if hooks else ():
            module.register_forward_hook(note)
        for step, (inputs, targets) in enumerate(train):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(inputs), targets)
            loss.backward()
            for name, parameter in net.named_parameters():
                writer.writerow((step, name, parameter.grad.norm().item(), loss.item()))
            optimizer.step()
        net.eval()
        with torch.no_grad():
            right = sum((net(x).argmax(1) == y).sum().item() for x, y in test)
        writer.writerow(("test", "accuracy", right, ""))


def usual_net() -> nn.Sequential:
    """The MLP as a plain sequence."""
    sizes = [28 * 28] + [WIDTH] * DEPTH
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    for weight in net.parameters():
        if weight.dim() > 1:
            nn.init.kaiming_normal_(weight)
    return net


def usual_loader(*, train: bool, workers: int) -> torch.utils.data.DataLoader:
    """MNIST as torchvision gives it, each image transformed when it is asked for."""
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    images = datasets.MNIST(os.environ["GRADEXP_DATA"], train=train, transform=transform)
    return torch.utils.data.DataLoader(
        images, BATCH, shuffle=train, drop_last=train, num_workers=workers
    )


if __name__ == "__main__":
    main()
