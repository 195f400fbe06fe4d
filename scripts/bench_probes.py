"""What watching costs: step times with gradients measured at every step, over a bare loop.

    GRADEXP_DATA=FOLDER python scripts/bench_probes.py [--steps N] [--cases NAME ...] [--growth]

gradexp carries out a whole run; every two seconds it waits while a bare loop over the same net,
written as an `nn.Sequential`, takes as many steps: so both share the machine's good and bad
moments. Then the other tools take turns with a bare loop, one tool after the other: some leave
work to threads and processes that would disturb whoever comes next. A ratio is the median over
rounds.
`with probes` adds the median cost of a probe, as often as `every: auto` probes. Everything gradexp
writes is counted; evaluation on the test set, which no other side does, is not.
`--growth` shows time and memory against depth instead.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timing import Times, conditions, median_ratio, print_table, timed
from torch import Tensor, nn
from torch.nn import functional as F

import gradexp
from gradexp.config import Config, Source, resolve
from gradexp.data import Batches
from gradexp.nn.network import Layer
from gradexp.recorder import PROBE_SHARE
from gradexp.train import EpochEnd, Observer, Progress, execute
from gradexp.train.learner import build_network, load_data
from gradexp.train.loop import Loop
from gradexp.train.run import CHECKPOINT_SECONDS

LR = 0.01
BARE = "bare loop"
CASES: dict[str, dict[str, Any]] = {
    "mlp": {
        "data": {"dataset": "mnist"},
        "model": {"family": "mlp", "depth": 20, "width": 256},
    },
    "cnn": {
        "data": {"dataset": "cifar10", "verify": False, "train_examples": 6400},
        "model": {"family": "cnn", "depth": 6, "width": 32},
    },
    "small": {
        "data": {"dataset": "mnist"},
        "model": {"family": "mlp", "depth": 5, "width": 64},
    },
    "tiny": {
        "data": {"dataset": "digits"},
        "model": {"family": "mlp", "depth": 5, "width": 64},
    },
}
STEPS = {"mlp": 2400, "cnn": 150, "small": 20000, "tiny": 30000}
TURN_SECONDS = 2.0
DEPTHS = (10, 100, 1000)
TOOL_ROUNDS, TOOL_SHARE = 5, 50  # rounds of a tool, each of this part of a case's steps
Step = Callable[[Tensor, Tensor], None]
Watch = Callable[[Tensor], None]
Run = Callable[[int, int], float]
"""From the first step and a count of steps to the seconds they took."""


def main() -> None:
    """Measure the chosen cases, one table each; or growth with depth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, help="of gradexp's run; each case has its default")
    parser.add_argument("--growth", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.growth:
        show_growth()
    else:
        for case in options.cases:
            show_case(case, options.steps or STEPS[case])
    print(conditions())


def config_of(case: dict[str, Any], steps: int) -> Config:
    """The run of a case."""
    train = {"steps": steps, "optimizer": {"name": "sgd", "lr": LR}}
    return resolve(Source({"name": "bench", "device": "cpu", **case, "train": train}))


class TakingTurns(Observer):
    """Times gradexp for some chunks; then the bare loop takes as many steps, and so on."""

    def __init__(self, bare: Run) -> None:
        self._bare = bare
        self._start, self._seconds, self._aside = 0, 0.0, 0.0
        self._began = time.perf_counter()
        self.times: Times = {BARE: [], "gradexp": []}
        self.probes: list[float] = []

    def progressed(self, progress: Progress) -> None:
        """A chunk has ended: note its time; at the end of a turn let the bare loop catch up."""
        self._seconds += time.perf_counter() - self._began - self._aside
        count = progress.step - self._start
        if self._seconds > TURN_SECONDS:
            self.times["gradexp"].append(self._seconds / count)
            self.times[BARE].append(self._bare(self._start, count) / count)
            self._start, self._seconds = progress.step, 0.0
        self._aside = 0.0
        self._began = time.perf_counter()

    def epoch_ended(self, end: EpochEnd) -> None:
        """Evaluation does not count."""
        self._aside += end.test_seconds

    def probe(self, loop: Loop, work: Callable[[Loop], None]) -> None:
        """A probe is timed apart."""
        self.probes.append(timed(lambda: work(loop)))
        self._aside += self.probes[-1]


def watch_run(config: Config, turns: TakingTurns) -> None:
    """Carry out a run with the bare loop taking turns, each probe timed apart."""
    work = Loop._probe
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Loop, "_probe", lambda loop: turns.probe(loop, work)),
    ):
        execute(config, Path(folder), observer=turns, checkpoint_seconds=2 * CHECKPOINT_SECONDS)
    for seconds in turns.times.values():
        del seconds[0]  # the first round warms up


def show_case(name: str, steps: int) -> None:
    """One table: every side's step time, and its ratio to the bare loop beside it."""
    config = config_of(CASES[name], steps)
    batches = batches_of(config)
    bare = steps_of(plain_step(plain_net(config)), batches)
    turns = TakingTurns(bare)
    watch_run(config, turns)
    with tempfile.TemporaryDirectory() as folder:
        tools = dict(beside_bare(config, batches, bare, Path(folder), steps // TOOL_SHARE))
    times, probe = turns.times, statistics.median(turns.probes)
    cadence = steps_between_probes(config, batches)
    times["gradexp, with probes"] = [seconds + probe / cadence for seconds in times["gradexp"]]
    rows = [row(side, times) for side in times]
    rows += [
        row(side, found) if found else (side, "not installed", "") for side, found in tools.items()
    ]
    model = ", ".join(f"{key} {value}" for key, value in CASES[name]["model"].items())
    title = f"{CASES[name]['data']['dataset']}, {model}, batch {batches.batch_size}"
    print_table(f"{title}; {len(times[BARE])} rounds", ("side", "ms / step", "x bare"), rows)
    print(f"a probe: {1e3 * probe:.1f} ms, every {cadence:.0f} steps\n")


def steps_between_probes(config: Config, batches: Batches) -> float:
    """What `every: auto` comes to in a run that is long enough for more than the fewest probes."""
    examples = min(int(config.probe.examples), len(batches.data.train_targets))
    return examples / (PROBE_SHARE * batches.batch_size)


def row(side: str, times: Times) -> tuple[str, ...]:
    """Median milliseconds a step, and the median ratio."""
    milliseconds = f"{1e3 * statistics.median(times[side]):.3f}"
    return (side, milliseconds, f"{median_ratio(times, side, BARE):.3f}")


def batches_of(config: Config) -> Batches:
    """The run's own batches: tensors in memory."""
    data = load_data(config, torch.device("cpu"))
    return Batches(data, config.data.batch_size, config.data.augment.make(), config.seed)


def beside_bare(
    config: Config, batches: Batches, bare: Run, folder: Path, steps: int
) -> Iterator[tuple[str, Times | None]]:
    """Each tool in rounds with a bare loop; None for one whose package is missing."""
    makers = {
        "gradexp.watch": watch_side,
        "hooks with .item()": hooks_run,
        "Lightning grad_norm, CSVLogger": lightning_run,
        "wandb.watch, offline": wandb_run,
        "TensorBoard histograms": tensorboard_run,
    }
    for side, make in makers.items():
        times: Times = {BARE: [], side: []}
        try:
            with make(plain_net(config), batches, folder) as run:
                for _ in range(1 + TOOL_ROUNDS):
                    times[BARE].append(bare(0, steps) / steps)
                    times[side].append(run(0, steps) / steps)
        except ImportError:
            yield side, None
        else:
            yield side, {name: seconds[1:] for name, seconds in times.items()}


def steps_of(step: Step, batches: Batches) -> Run:
    """A side that is a function of a batch."""

    def run(first: int, count: int) -> float:
        def work() -> None:
            for index in range(first, first + count):
                step(*batches.batch(index))

        return timed(work)

    return run


def plain_net(config: Config) -> nn.Sequential:
    """The same net as people write it: torch's modules in a row."""
    network = build_network(config)
    modules: list[nn.Module] = [] if network.spatial else [nn.Flatten()]
    for block in network.blocks:
        for layer in block.layers:
            modules += [torch_module(layer), layer.activation]
        modules += [block.pool] if block.pool is not None else []
    modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if network.spatial else []
    return nn.Sequential(*modules, torch_module(network.readout))


def torch_module(layer: Layer) -> nn.Module:
    """The layer's linear map by torch's own module, with the same weights."""
    if not isinstance(layer.map, nn.Linear):
        return layer.map
    module = nn.Linear(layer.map.in_features, layer.map.out_features)
    module.load_state_dict(layer.map.state_dict())
    return module


def plain_step(net: nn.Module, *, watch: Watch | None = None) -> Step:
    """Forward, backward, update; `watch` sees the loss while gradients are there."""
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(inputs), targets)
        loss.backward()
        if watch:
            watch(loss)
        optimizer.step()

    return step


@contextlib.contextmanager
def watch_side(net: nn.Module, batches: Batches, folder: Path) -> Iterator[Run]:
    """The bare loop under `gradexp.watch`: gradients, weights and updates at every step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    with gradexp.watch(net, optimizer, out=folder / "watched") as watch:

        def step(inputs: Tensor, targets: Tensor) -> None:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(inputs), targets)
            loss.backward()
            optimizer.step()
            watch.step(loss)

        yield steps_of(step, batches)


@contextlib.contextmanager
def hooks_run(net: nn.Module, batches: Batches, folder: Path) -> Iterator[Run]:
    """A hook per parameter that notes `.norm().item()`, and a line of CSV a step."""
    norms: dict[str, float] = {}
    for name, parameter in net.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda one, name=name: norms.update({name: one.grad.norm().item()})
        )
    path = folder / "hooks.csv"

    def watch(loss: Tensor) -> None:
        with path.open("a") as file:
            file.write(",".join(map(str, (loss.item(), *norms.values()))) + "\n")

    yield steps_of(plain_step(net, watch=watch), batches)


@contextlib.contextmanager
def wandb_run(net: nn.Module, batches: Batches, folder: Path) -> Iterator[Run]:
    """`wandb.watch` of gradients at every step, into a local folder."""
    import wandb

    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    with wandb.init(project="bench", dir=folder) as run:
        run.watch(net, log="gradients", log_freq=1)
        step = plain_step(net, watch=lambda loss: run.log({"loss": loss.item()}))
        yield steps_of(step, batches)


@contextlib.contextmanager
def tensorboard_run(net: nn.Module, batches: Batches, folder: Path) -> Iterator[Run]:
    """A histogram of every parameter's gradient at every step."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder / "tensorboard") as writer:

        def watch(loss: Tensor) -> None:
            writer.add_scalar("loss", loss.item())
            for name, parameter in net.named_parameters():
                writer.add_histogram(name, parameter.grad)

        yield steps_of(plain_step(net, watch=watch), batches)


@contextlib.contextmanager
def lightning_run(net: nn.Module, batches: Batches, folder: Path) -> Iterator[Run]:
    """Lightning's `grad_norm` at every step into its CSVLogger; start-up of a fit not counted."""
    import lightning
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.utilities import grad_norm

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.seconds = net, 0.0

        def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
            inputs, targets = batch
            return F.cross_entropy(self.net(inputs), targets)

        def on_before_optimizer_step(self, _optimizer: object) -> None:
            self.log_dict(grad_norm(self, norm_type=2))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LR)

        def on_train_start(self) -> None:
            self.seconds -= time.perf_counter()

        def on_train_end(self) -> None:
            self.seconds += time.perf_counter()

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Module()

    def run(first: int, count: int) -> float:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=count,
            logger=CSVLogger(folder),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module.seconds = 0.0
        chosen = [batches.batch(index) for index in range(first, first + count)]
        trainer.fit(module, torch.utils.data.DataLoader(chosen, batch_size=None))
        return module.seconds

    yield run


def show_growth() -> None:
    """Time per step and memory against depth, each depth in a process of its own."""
    rows = []
    for depth in DEPTHS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            bare, ours, before, after = pool.submit(growth, depth).result()
        rows.append(
            (
                f"{depth:,}",
                f"{1e3 * bare:.2f}",
                f"{1e3 * ours:.2f}",
                f"{1e6 * ours / depth:.0f}",
                f"{ours / bare:.2f}",
                f"{before:.0f}",
                f"{after:.0f}",
            )
        )
    columns = ("depth", "bare ms", "gradexp ms", "us / layer", "x bare", "bare MB", "gradexp MB")
    print_table("digits, mlp, width 32, batch 128; MB at the most, of a process", columns, rows)


def growth(depth: int) -> tuple[float, float, float, float]:
    """Median seconds a step (bare, gradexp) and peak megabytes (before and after gradexp ran)."""
    parts = {"activation": "tanh", "init": "orthogonal"}  # stays finite at any depth
    model = {"family": "mlp", "depth": depth, "width": 32, **parts}
    config = config_of({"data": {"dataset": "digits"}, "model": model}, 200_000 // depth)
    side = steps_of(plain_step(plain_net(config)), batches_of(config))
    side(0, 5)
    before = peak_megabytes()
    turns = TakingTurns(side)
    watch_run(config, turns)
    ours, bare = (statistics.median(turns.times[one]) for one in ("gradexp", BARE))
    return bare, ours, before, peak_megabytes()


def peak_megabytes() -> float:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
