"""Steps on a GPU: whether they wait for it, and what measuring adds to their time."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from unittest import mock

import torch
from gpu_common import (
    Foreign,
    Row,
    Setting,
    Settings,
    Size,
    Step,
    config_of,
    merged,
    nets,
    place,
    settings_of,
)
from torch import Tensor, nn
from torch.nn import functional as F

from gradexp.config import Config
from gradexp.data import Batches
from gradexp.probes import PROBES, Prober, ProbeSet, Subject
from gradexp.probes.finding import find_layers
from gradexp.train import EpochEnd, Observer, Progress, Start, execute
from gradexp.train.learner import Learner, load_data
from gradexp.watching import watch

NOT_JUDGED = "not judged"
LR = 0.001
Shape = tuple[int, int, int]


def batch_of(setting: Setting, shape: Shape, count: int) -> tuple[Tensor, Tensor]:
    """Random images and classes."""
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(count, *shape, generator=draws)
    classes = torch.randint(10, (count,), generator=draws)
    return images.to(setting.device), classes.to(setting.device)


def resnet() -> nn.Module:
    """Torchvision's ResNet-18, with nothing downloaded."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    net: nn.Module = resnet18(num_classes=10)
    return net


# --- waiting -------------------------------------------------------------------------------------

WARM_UP, NOTED, STRICT, BUSY = 3, 3, 12, 2  # steps
BUSY_CYCLES = 10**9  # about half a second
ATTEMPTS = 3  # a step that needs more memory makes the driver wait, once


def check_waiting(setting: Setting) -> Iterator[Row]:
    """Steps in the middle of a chunk: torch sees no wait, and they outrun a busy device."""
    if not setting.gpu:
        yield Row("no step waits for the device", "not on this device", NOT_JUDGED, ok=None)
        return
    for net in nets(setting.size):
        learner = learner_of(setting, net)
        yield from quiet(f"run, {net}", partial(learner.step, total=10**6), setting)
        yield from known_waits(f"run, {net}", learner)
    for name, model, shape in (
        ("foreign", Foreign(), (1, 8, 8)),
        ("resnet18", resnet(), (3, 8, 8)),
    ):
        with watched_steps(setting, name, model, shape) as step:
            yield from quiet(f"watch, {name}", step, setting)


def learner_of(setting: Setting, net: str) -> Learner:
    """A net at work, on so many images that no epoch ends within what is looked at."""
    images = {"data": {"dataset": "synthetic", "size": 8, "examples": 4096}}
    settings = merged(settings_of(setting.size, net), images)
    return Learner(config_of(settings, setting.device), setting.device)


@contextlib.contextmanager
def watched_steps(setting: Setting, name: str, net: nn.Module, shape: Shape) -> Iterator[Step]:
    """Steps of a plain loop with clipping on one batch; nothing is written meanwhile."""
    net.to(setting.device)
    inputs, labels = batch_of(setting, shape, 64)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9)
    with (
        mock.patch("gradexp.watching.watching.CHUNK_SECONDS", math.inf),
        watch(net, optimizer, out=setting.folder / name) as watching,
    ):

        def step(_index: int) -> None:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(inputs), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            watching.step(loss)

        yield step


def quiet(name: str, step: Step, setting: Setting) -> Iterator[Row]:
    """Whether steps wait: as torch sees it, and by a device that is kept busy."""
    for index in range(WARM_UP):
        step(index)
    start = WARM_UP + NOTED
    places = noted_waits(step, range(WARM_UP, start))
    if places:
        figure = ", ".join(f"{spot} ({count} x)" for spot, count in places.items())
        yield Row(f"{name}: waits in {NOTED} steps", figure, "none", ok=False)
        return
    with sync_mode("error"):
        for index in range(start, start + STRICT):
            step(index)
    yield Row(f"{name}: waits in {STRICT} steps", "none", "none", ok=True)
    attempts = range(start + STRICT, start + STRICT + BUSY * ATTEMPTS, BUSY)
    ahead = any(outrun(step, range(first, first + BUSY), setting) for first in attempts)
    figure = "handed over meanwhile" if ahead else "the host waited"
    yield Row(f"{name}: steps while the device is busy", figure, "handed over", ok=ahead)


def known_waits(name: str, learner: Learner) -> Iterator[Row]:
    """The end of a chunk fetches its figures; the first step of an epoch gets a new order."""
    for what, step, index in (
        ("a chunk's end", lambda _index: learner.step_probe.take(), 0),
        ("an epoch's start", partial(learner.step, total=10**6), learner.batches.per_epoch),
    ):
        places = noted_waits(step, [index])
        figure = ", ".join(f"{spot} ({count} x)" for spot, count in places.items()) or "none"
        yield Row(f"{name}: waits at {what}", figure, NOT_JUDGED, ok=None)


def noted_waits(step: Step, indices: Sequence[int]) -> Counter[str]:
    """Where these steps wait for the device, as far as torch sees it."""
    places: Counter[str] = Counter()

    def note(message: object, *_more: object, **_named: object) -> None:
        if "synchronizing" in str(message):
            places[place(traceback.extract_stack()[:-1])] += 1

    with warnings.catch_warnings(), sync_mode("warn"):
        warnings.simplefilter("always")
        warnings.showwarning = note
        for index in indices:
            step(index)
    return places


@contextlib.contextmanager
def sync_mode(word: str) -> Iterator[None]:
    """What torch does when the host waits for the device."""
    torch.cuda.set_sync_debug_mode(word)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def outrun(step: Step, indices: Sequence[int], setting: Setting) -> bool:
    """Whether steps are handed over while the device still does something else."""
    setting.wait()
    torch.cuda._sleep(BUSY_CYCLES)
    woken = torch.cuda.Event()
    woken.record()
    for index in indices:
        step(index)
    ahead = not woken.query()
    setting.wait()
    return ahead


# --- cost ----------------------------------------------------------------------------------------

LIMIT, SHORT_LIMIT, SHORT_STEP = 1.05, 1.15, 2e-3  # of step time; for steps shorter than that
IMAGE = 28  # side of the synthetic images
Times = Mapping[str, list[float]]
"""Seconds a step of each side, round by round."""


def check_cost(setting: Setting) -> Iterator[Row]:
    """Two runs of ours, and anybody's ResNet-18 under `watch`."""
    size = setting.size
    depth, width = size.mlp
    mlp = {"family": "mlp", "depth": depth, "width": width}
    cnn = {"family": "cnn", "depth": 6, "width": size.channels, "stages": 3}
    for name, model, channels, net in (
        (f"mlp {depth} x {width}", mlp, 1, plain_mlp(depth, width)),
        (f"cnn 6 x {size.channels} and more", cnn, 3, plain_cnn(size.channels)),
    ):
        config = config_of(timed_settings(size, model, channels), setting.device)
        bare = BareLoop(config, net, setting)
        yield run_cost(f"run, {name}", config, bare, setting)
        yield repeatability_cost(name, bare, setting)
    for side in size.resnet:
        yield from watch_cost(setting, (3, side, side))


def timed_settings(size: Size, model: Settings, channels: int) -> Settings:
    """A run on synthetic images, probed at its ends only."""
    steps = size.chunk * (size.rounds + 1)
    images = {"dataset": "synthetic", "channels": channels, "size": IMAGE, "examples": size.images}
    return {
        "data": {**images, "batch_size": size.batch},
        "model": model,
        "train": {"steps": steps, "optimizer": {"name": "sgd", "lr": LR}},
        "probe": {"every": steps, "examples": size.batch},
    }


def plain_mlp(depth: int, width: int) -> nn.Module:
    """The same net as the run's, of torch's own modules."""
    sizes = [IMAGE * IMAGE, *[width] * depth]
    modules: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*modules, nn.Linear(width, 10))


def plain_cnn(width: int) -> nn.Module:
    """Alike: three stages of two convolutions, between them half the image and twice the width."""
    channels, modules = 3, list[nn.Module]()
    for stage in range(3):
        modules += [nn.MaxPool2d(2)] if stage else []
        for _ in range(2):
            modules += [nn.Conv2d(channels, width * 2**stage, 3, padding=1), nn.ReLU()]
            channels = width * 2**stage
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def plain_step(net: nn.Module, optimizer: torch.optim.Optimizer, *batch: Tensor) -> Tensor:
    """Forward, backward, update; returns the loss."""
    inputs, targets = batch
    optimizer.zero_grad()
    loss = F.cross_entropy(net(inputs), targets)
    loss.backward()
    optimizer.step()
    return loss


class BareLoop:
    """A plain net on the batches of a run."""

    def __init__(self, config: Config, net: nn.Module, setting: Setting) -> None:
        data = load_data(config, setting.device)
        self._batches = Batches(
            data, config.data.batch_size, config.data.augment.make(), config.seed
        )
        self._net, self._setting = net.to(setting.device), setting
        self._optimizer = torch.optim.SGD(net.parameters(), lr=LR)

    def step(self, index: int) -> None:
        """One of them."""
        plain_step(self._net, self._optimizer, *self._batches.batch(index))

    def seconds(self, first: int, count: int) -> float:
        """A step's seconds, over so many steps."""
        return timed(self.step, range(first, first + count), self._setting)


def timed(step: Step, indices: Sequence[int], setting: Setting) -> float:
    """Seconds a step, from an idle device to an idle device."""
    setting.wait()
    began = time.perf_counter()
    for index in indices:
        step(index)
    setting.wait()
    return (time.perf_counter() - began) / len(indices)


class Rounds(Observer):
    """Times each chunk of a run; after each a bare loop takes as many steps."""

    def __init__(self, bare: BareLoop) -> None:
        self._bare = bare
        self.times: dict[str, list[float]] = {"ours": [], "bare": []}

    def started(self, start: Start) -> None:
        """Data and net are there."""
        self._step, self._aside, self._began = start.first_step, 0.0, time.perf_counter()

    def epoch_ended(self, end: EpochEnd) -> None:
        """Evaluation does not count: the bare loop has none."""
        self._aside += end.test_seconds

    def progressed(self, progress: Progress) -> None:
        """A chunk has ended: its figures are on the host, so the device has nothing left to do."""
        seconds = time.perf_counter() - self._began - self._aside
        count = progress.step - self._step
        self.times["ours"].append(seconds / count)
        self.times["bare"].append(self._bare.seconds(self._step, count))
        self._step, self._aside, self._began = progress.step, 0.0, time.perf_counter()


def run_cost(name: str, config: Config, bare: BareLoop, setting: Setting) -> Row:
    """A run of ours, and the bare loop in turns with it."""
    rounds = Rounds(bare)
    with mock.patch("gradexp.train.chunks.CHUNK_STEPS", setting.size.chunk):
        execute(config, setting.folder / "run", observer=rounds)
    return ratio(f"{name}: step time over a bare loop's", rounds.times, setting, judged=True)


def repeatability_cost(name: str, bare: BareLoop, setting: Setting) -> Row:
    """What the bare loop itself pays for kernels that repeat bit for bit, as runs of ours do."""

    def free(index: int) -> None:
        with any_kernels():
            bare.step(index)

    times = in_turns({"repeatable": bare.step, "free": free}, setting.size.round, setting)
    what = f"bare loop, {name}: repeatable kernels over any"
    return ratio(what, times, setting, judged=False)


@contextlib.contextmanager
def any_kernels() -> Iterator[None]:
    """With torch's own choice of kernels, as loops of other people have it."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def watch_cost(setting: Setting, shape: Shape) -> Iterator[Row]:
    """Two ResNet-18 on one batch, one of them watched; and what a probe takes."""
    count = setting.size.batch // 2
    batch = batch_of(setting, shape, count)
    bare, watched = plain_and_copy(resnet().to(setting.device))
    with any_kernels():
        with watch(*watched, out=setting.folder / "watched") as watching:
            sides: dict[str, Step] = {
                "ours": lambda _index: watching.step(plain_step(*watched, *batch)),
                "bare": lambda _index: plain_step(*bare, *batch),
            }
            times = in_turns(sides, setting.size.round, setting)
        name = f"resnet18, {count} images of {shape[1]} x {shape[2]}"
        yield ratio(f"watch, {name}: step time over a bare loop's", times, setting, judged=True)
        probe = prober_of(bare[0], *batch).look
        times = in_turns({"probe": probe, "bare": sides["bare"]}, 1, setting)
        yield ratio(f"{name}: a probe over a bare step", times, setting, judged=False)


def plain_and_copy(net: nn.Module) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
    """The net and one just like it, each with its optimizer."""
    pair = (net, copy.deepcopy(net))
    return [(one, torch.optim.SGD(one.parameters(), lr=LR)) for one in pair]


def prober_of(net: nn.Module, inputs: Tensor, targets: Tensor) -> Prober:
    """What looks at somebody's net, as `watch` does."""
    layers = find_layers(net, inputs)
    none: list[Tensor | None] = [None] * len(layers)
    loss: Callable[..., Tensor] = partial(F.cross_entropy, reduction="sum")
    subject = Subject(net, layers, loss, lambda: none)
    return Prober(
        subject, ProbeSet(inputs, targets, len(inputs)), [entry.make() for entry in PROBES]
    )


def in_turns(sides: Mapping[str, Step], count: int, setting: Setting) -> Times:
    """Rounds of all sides, in turned order every second time."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(setting.size.rounds + 1):
        for name in list(sides)[:: -1 if index % 2 else 1]:
            first = index * count
            times[name].append(timed(sides[name], range(first, first + count), setting))
    return times


def ratio(what: str, times: Times, setting: Setting, *, judged: bool) -> Row:
    """Of the first side to the second: median over rounds, the first of which warms up."""
    ours, bare = (seconds[1:] for seconds in times.values())
    median = statistics.median(one / other for one, other in zip(ours, bare, strict=True))
    figure = (
        f"{median:.3f} (fastest rounds {min(ours) / min(bare):.3f}): "
        f"{1e3 * statistics.median(ours):.3f} over {1e3 * statistics.median(bare):.3f} ms, "
        f"{len(ours)} rounds"
    )
    if not (judged and setting.times_count):
        return Row(what, figure, NOT_JUDGED, ok=None)
    limit = limit_of(statistics.median(bare))
    return Row(what, figure, f"{limit:.2f}", ok=median <= limit)


def limit_of(seconds: float) -> float:
    """What measuring may cost, over steps that take so long without."""
    return LIMIT if seconds >= SHORT_STEP else SHORT_LIMIT
