"""When a run looks and when it stops: functions of counts alone, never of the clock."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from gradexp.config import Config
from gradexp.recorder import PROBE_SHARE

FEWEST_PROBES = 3


@dataclass(frozen=True)
class Timetable:
    """What is to be done at which step.

    Attributes:
        total: steps of the whole run.
        per_epoch: steps of an epoch.
        probes: the steps at which the net is probed, rising; always at 0 and at the end.
    """

    total: int
    per_epoch: int
    probes: list[int]

    def next_probe(self, step: int) -> int:
        """The first probe after `step` updates."""
        return self.probes[bisect_right(self.probes, step)]

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch, or the run, ends after so many updates."""
        return step % self.per_epoch == 0 or step == self.total


def timetable(config: Config, per_epoch: int, batch: int, examples: int) -> Timetable:
    """Of a run with such epochs, batches and probes."""
    total = total_steps(config, per_epoch)
    return Timetable(total, per_epoch, probe_steps(config, total, per_epoch, batch, examples))


def total_steps(config: Config, per_epoch: int) -> int:
    """Optimizer updates of the whole run."""
    if config.train.steps is not None:
        return config.train.steps
    return (config.train.epochs or 0) * per_epoch


def probe_steps(config: Config, total: int, per_epoch: int, batch: int, examples: int) -> list[int]:
    """The steps at which the net is probed, rising; always at 0 and at the end.

    Args:
        config: the run's config; `probe.every` decides.
        total: steps of the whole run.
        per_epoch: steps of an epoch.
        batch: examples of a training step.
        examples: examples of a probe.
    """
    every = config.probe.every
    if every == "auto":
        affordable = int(PROBE_SHARE * total * batch / examples)
        count = max(FEWEST_PROBES, affordable)
        return sorted({round(total * index / (count - 1)) for index in range(count)})
    stride = per_epoch if every == "epoch" else every
    return sorted({*range(0, total, stride), total})
