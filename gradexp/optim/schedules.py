"""Learning-rate schedules: a factor on the optimizer's lr for each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, TypeAlias

from pydantic import Field

from gradexp.errors import ConfigError
from gradexp.registry import NonNegativeInt, Positive, Registry, UnitInterval

Schedule: TypeAlias = Callable[[int, int], float]
"""From a step (0-based) and the total number of steps to a factor on lr."""

SCHEDULES: Registry[Callable[..., Schedule]] = Registry(
    "schedule", "how the learning rate changes during training", product=Callable
)

Milestones = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False)]


def _with_warmup(schedule: Schedule, warmup_steps: int) -> Schedule:
    """Rise linearly to the full rate over the first steps; the schedule has the rest."""

    def factor(step: int, total: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return schedule(step - warmup_steps, max(1, total - warmup_steps))

    return factor


@SCHEDULES.register("constant")
def constant(*, warmup_steps: NonNegativeInt = 0) -> Schedule:
    """The same learning rate throughout, after a linear warm-up where wanted."""
    return _with_warmup(lambda _step, _total: 1.0, warmup_steps)


@SCHEDULES.register("cosine", source="Loshchilov & Hutter 2017")
def cosine(*, final: UnitInterval = 0.0, warmup_steps: NonNegativeInt = 0) -> Schedule:
    """Half a cosine from the full rate down to the share `final` of it."""

    def factor(step: int, total: int) -> float:
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * step / total))

    return _with_warmup(factor, warmup_steps)


@SCHEDULES.register("step")
def step(
    *,
    milestones: Milestones = (0.5, 0.75),
    gamma: Positive = 0.1,
    warmup_steps: NonNegativeInt = 0,
) -> Schedule:
    """Times gamma at each milestone, given as a share of training."""
    if list(milestones) != sorted(milestones):
        raise ConfigError(f"milestones must rise, got {list(milestones)}")

    def factor(step: int, total: int) -> float:
        return gamma ** sum(step >= milestone * total for milestone in milestones)

    return _with_warmup(factor, warmup_steps)
