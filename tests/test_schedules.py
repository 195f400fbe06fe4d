"""Schedules against tables of (step, total) -> factor worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradexp.errors import ConfigError
from gradexp.optim import SCHEDULES
from tests.nets import config_of, run_of

Table = list[tuple[int, int, float]]
HALF = math.sqrt(0.5)

TABLES: dict[str, tuple[str, dict[str, Any], Table]] = {
    "constant": ("constant", {}, [(0, 10, 1.0), (5, 10, 1.0), (9, 10, 1.0), (0, 1, 1.0)]),
    "constant, warm-up": (
        "constant",
        {"warmup_steps": 4},
        [(0, 10, 0.25), (1, 10, 0.5), (2, 10, 0.75), (3, 10, 1.0), (4, 10, 1.0), (9, 10, 1.0)],
    ),
    "cosine": (
        "cosine",
        {},
        [
            (0, 8, 1.0),
            (2, 8, 0.5 + HALF / 2),
            (4, 8, 0.5),
            (6, 8, 0.5 - HALF / 2),
            (7, 8, 0.5 * (1 - math.cos(math.pi / 8))),
            (8, 8, 0.0),
            (4, 12, 0.75),
            (8, 12, 0.25),
        ],
    ),
    "cosine, final": (
        "cosine",
        {"final": 0.2},
        [(0, 8, 1.0), (2, 8, 0.6 + 0.4 * HALF), (4, 8, 0.6), (8, 8, 0.2)],
    ),
    "cosine that stays": ("cosine", {"final": 1.0}, [(0, 8, 1.0), (3, 8, 1.0), (8, 8, 1.0)]),
    "cosine, warm-up": (
        "cosine",
        {"warmup_steps": 2},
        # After it, half a cosine over the remaining 8 of 10 steps.
        [(0, 10, 0.5), (1, 10, 1.0), (2, 10, 1.0), (4, 10, 0.5 + HALF / 2), (6, 10, 0.5)],
    ),
    "cosine, warm-up, final": (
        "cosine",
        {"warmup_steps": 3, "final": 0.5},
        [(0, 9, 1 / 3), (2, 9, 1.0), (3, 9, 1.0), (5, 9, 0.875), (6, 9, 0.75), (9, 9, 0.5)],
    ),
    "step": (
        "step",
        {},
        [(0, 8, 1.0), (3, 8, 1.0), (4, 8, 0.1), (5, 8, 0.1), (6, 8, 0.01), (7, 8, 0.01)],
    ),
    "step between steps": ("step", {}, [(4, 9, 1.0), (5, 9, 0.1), (6, 9, 0.1), (7, 9, 0.01)]),
    "step, options": (
        "step",
        {"milestones": (0.25, 0.5, 0.5), "gamma": 0.5},
        [(0, 8, 1.0), (1, 8, 1.0), (2, 8, 0.5), (3, 8, 0.5), (4, 8, 0.125), (7, 8, 0.125)],
    ),
    "step upward": ("step", {"milestones": (0.5,), "gamma": 3.0}, [(1, 4, 1.0), (2, 4, 3.0)]),
    "step without milestones": ("step", {"milestones": ()}, [(0, 4, 1.0), (3, 4, 1.0)]),
    "step, warm-up": (
        "step",
        {"warmup_steps": 2, "milestones": (0.5,)},
        [(0, 10, 0.5), (1, 10, 1.0), (2, 10, 1.0), (5, 10, 1.0), (6, 10, 0.1), (9, 10, 0.1)],
    ),
}


def test_every_schedule_has_tables_with_and_without_warmup() -> None:
    warm = {name for name, options, _ in TABLES.values() if "warmup_steps" in options}
    cold = {name for name, options, _ in TABLES.values() if "warmup_steps" not in options}
    assert warm == cold == set(SCHEDULES.names())


@pytest.mark.parametrize("case", TABLES)
def test_factors(case: str) -> None:
    name, options, table = TABLES[case]
    schedule = SCHEDULES[name].factory(**options)
    for step, total, factor in table:
        assert schedule(step, total) == pytest.approx(factor, rel=1e-12, abs=1e-15), (step, total)


@pytest.mark.parametrize("name", SCHEDULES.names())
@given(warmup=st.integers(1, 30), total=st.integers(1, 60))
def test_a_warmup_rises_evenly_to_the_full_rate(name: str, warmup: int, total: int) -> None:
    """However long it is: a run may even end before it does."""
    schedule = SCHEDULES[name].factory(warmup_steps=warmup)
    rising = [schedule(step, total) for step in range(min(warmup, total))]
    assert rising == pytest.approx([(step + 1) / warmup for step in range(len(rising))])
    if warmup <= total:
        assert schedule(warmup, total) == 1.0


LR = "train.optimizer={name: sgd, lr: 0.2}"


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.2, 0.2, 0.2, 0.2]),
        ("{name: constant, warmup_steps: 2}", [0.1, 0.2, 0.2, 0.2]),
        ("cosine", [0.2, 0.1 + 0.1 * HALF, 0.1, 0.1 - 0.1 * HALF]),
        ("{name: cosine, final: 0.5, warmup_steps: 2}", [0.1, 0.2, 0.2, 0.15]),
        ("step", [0.2, 0.2, 0.02, 0.002]),
        ("{name: step, warmup_steps: 2, milestones: [0.5], gamma: 0.5}", [0.1, 0.2, 0.2, 0.1]),
    ],
)
def test_a_run_records_the_rates_and_takes_steps_of_that_size(
    tmp_path: Path, schedule: str, rates: list[float]
) -> None:
    run = run_of(tmp_path, LR, f"train.schedule={schedule}")
    assert run.read("steps")["lr"].tolist() == pytest.approx(rates, rel=1e-6)
    gradients = run.read("gradients")
    expected = gradients["grad_norm"] * gradients["step"].map(dict(enumerate(rates)))
    assert gradients["update_norm"].tolist() == pytest.approx(expected.tolist(), rel=1e-3)


def test_milestones_must_rise() -> None:
    with pytest.raises(ConfigError, match=r"milestones must rise, got \[0.75, 0.5\]"):
        SCHEDULES["step"].factory(milestones=(0.75, 0.5))
    with pytest.raises(ConfigError, match=r"train.schedule.*milestones must rise"):
        config_of("train.schedule={name: step, milestones: [0.75, 0.5]}")


@pytest.mark.parametrize(
    "schedule",
    [
        "{name: step, milestones: [0.0]}",
        "{name: step, milestones: [1.0]}",
        "{name: step, gamma: 0}",
        "{name: cosine, final: 1.1}",
        "{name: cosine, final: -0.1}",
        "{name: constant, warmup_steps: -1}",
    ],
)
def test_options_out_of_range_are_refused(schedule: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.schedule"):
        config_of(f"train.schedule={schedule}")
