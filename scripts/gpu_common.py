"""What the checks on a GPU share: where and how much, what a check tells, short runs on digits."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradexp
from gradexp.config import Config, Source, resolve
from gradexp.data import DATASETS
from gradexp.records import RunDir
from gradexp.watching import watch

Settings = dict[str, Any]
SCRIPTS, PACKAGE = Path(__file__).parent, Path(gradexp.__file__).parent
BATCH = 64  # of the short runs


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        steps: of a short run, whose probes are at its ends and in the middle.
        depth: of its net.
        width: alike; a CNN has a quarter as many channels.
        examples: of a probe.
        parts: how many of each registry are tried; None for all.
        mlp: depth and width of the one whose steps are timed.
        channels: of the timed CNN.
        batch: of what is timed.
        images: synthetic ones, alike.
        resnet: sides of the images of the timed ResNet-18.
        rounds: in which sides take turns.
        chunk: steps of a round of a run.
        round: steps of a round of a loop.
    """

    steps: int
    depth: int
    width: int
    examples: int
    parts: int | None
    mlp: tuple[int, int]
    channels: int
    batch: int
    images: int
    resnet: tuple[int, ...]
    rounds: int
    chunk: int
    round: int


FULL = Size(
    steps=8,
    depth=5,
    width=64,
    examples=256,
    parts=None,
    mlp=(20, 256),
    channels=32,
    batch=128,
    images=12800,
    resnet=(32, 224),
    rounds=11,
    chunk=256,
    round=30,
)
TINY = Size(
    steps=4,
    depth=2,
    width=8,
    examples=32,
    parts=1,
    mlp=(2, 8),
    channels=2,
    batch=8,
    images=40,
    resnet=(8,),
    rounds=1,
    chunk=2,
    round=1,
)


@dataclass(frozen=True)
class Setting:
    """Where to check, how much, and a folder to do it in."""

    device: torch.device
    size: Size
    folder: Path

    @property
    def gpu(self) -> bool:
        """Whether there is anything to wait for."""
        return self.device.type == "cuda"

    @property
    def times_count(self) -> bool:
        """Whether times mean anything."""
        return self.gpu and self.size is FULL

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.gpu:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Row:
    """What a check found; `ok` is None where nothing is judged."""

    what: str
    figure: str
    limit: str
    ok: bool | None


Check = Callable[[Setting], Iterator[Row]]
Step = Callable[[int], object]


def last_words(error: BaseException) -> str:
    """The last line of an error, and where in this project it came up."""
    line = traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
    return f"{line} ({place(traceback.extract_tb(error.__traceback__))})"


def place(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line of gradexp among these; else of these scripts; else of anybody."""
    found = [(Path(frame.filename), frame.lineno) for frame in frames]
    package = [one for one in found if PACKAGE in one[0].parents]
    scripts = [one for one in found if one[0].parent == SCRIPTS]
    path, line = (package or scripts or found)[-1]
    return f"{path.parent.name}/{path.name}:{line}"


# --- runs of ours --------------------------------------------------------------------------------

RANDOM = "random"  # the net that draws random numbers on the device


def nets(size: Size) -> dict[str, Settings]:
    """The nets of short runs, by what is special about them."""
    cnn = {"family": "cnn", "depth": size.depth, "width": size.width // 4, "stages": 2}
    separable = {"family": "mobilenet_v1", "depth": 2, "width": size.width // 4, "stages": 2}
    return {
        "mlp": {"model": {"family": "mlp", "depth": size.depth, "width": size.width}},
        "cnn": {"model": cnn},
        "batch norm": {"model": {**cnn, "norm": "batch"}},
        RANDOM: {
            "data": {"augment": {"name": "crop_flip", "pad": 1}},
            "model": {**separable, "norm": "batch", "dropout": 0.2},
            "train": {"optimizer": "adam", "clip": "norm", "weight_decay": 0.01, "l1": 1e-4},
        },
    }


def settings_of(size: Size, net: str) -> Settings:
    """A short run of that net on digits."""
    base: Settings = {
        "data": {"dataset": "digits", "batch_size": BATCH},
        "train": {"steps": size.steps, "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9}},
        "probe": {"every": size.steps // 2, "examples": size.examples},
    }
    return {"name": "check", "seed": 3, **merged(base, nets(size)[net])}


def merged(base: Settings, more: Settings) -> Settings:
    """Settings with more keys in their sections."""
    sections = {key: {**base.get(key, {}), **section} for key, section in more.items()}
    return {**base, **sections}


def config_of(settings: Settings, device: torch.device) -> Config:
    """Resolved, for that device."""
    return resolve(Source({**settings, "device": device.type}))


# --- a loop of somebody's own --------------------------------------------------------------------


class Foreign(nn.Module):
    """A net that knows nothing of gradexp: functions as activations, one of them in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, padding=1)
        self.third = nn.Linear(16 * 4 * 4, 32)
        self.last = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of digits."""
        values = F.relu(self.norm(self.first(images)))
        values = F.max_pool2d(F.relu(self.second(values), inplace=True), 2)
        logits: Tensor = self.last(F.gelu(self.third(values.flatten(1))))
        return logits


def watched_run(setting: Setting, device: torch.device, name: str, *, half: bool = False) -> RunDir:
    """That net in a plain loop on digits: clipped, in half precision where wanted, watched."""
    splits = DATASETS["digits"].make().load()
    images, targets = splits.train_images.to(device), splits.train_targets.to(device)
    torch.manual_seed(0)
    net = Foreign().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=half)
    kind = torch.float16 if device.type == "cuda" else torch.bfloat16
    probe = images[: setting.size.examples], targets[: setting.size.examples]
    with watch(
        net,
        optimizer,
        probe=probe,
        loss=F.cross_entropy,
        out=setting.folder / name,
        every=setting.size.steps // 2,
        scaler=scaler,
    ) as watching:
        batches = zip(images.split(BATCH), targets.split(BATCH), strict=True)
        for (inputs, labels), _ in zip(batches, range(setting.size.steps), strict=False):
            with torch.autocast(device.type, kind, enabled=half):
                outputs = net(inputs)
                loss = F.cross_entropy(outputs, labels)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            watching.step(loss, outputs, labels)
    return watching.run
