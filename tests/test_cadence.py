"""When a run looks and when it stops: against tables, and what becomes of it in the files."""

from __future__ import annotations

from typing import Any

import pytest

from gradexp.train.plan import timetable
from tests.nets import config_of


def probes(every: Any, steps: int, per_epoch: int = 10, batch: int = 8, examples: int = 64) -> Any:
    config = config_of(f"probe.every={every}", f"train.steps={steps}")
    return timetable(config, per_epoch, batch, examples).probes


@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [
        ("epoch", 30, [0, 10, 20, 30]),
        ("epoch", 35, [0, 10, 20, 30, 35]),
        ("epoch", 5, [0, 5]),
        ("7", 20, [0, 7, 14, 20]),
        ("10", 20, [0, 10, 20]),
        ("100", 20, [0, 20]),
        ("1", 3, [0, 1, 2, 3]),
        ("auto", 0, [0]),
        ("auto", 1, [0, 1]),
        ("auto", 2, [0, 1, 2]),
        ("auto", 100, [0, 50, 100]),
        # 5 % of 8 x 640 training examples are four probes of 64.
        ("auto", 639, [0, 320, 639]),
        ("auto", 640, [0, 213, 427, 640]),
        ("auto", 800, [0, 200, 400, 600, 800]),
    ],
)
def test_probes_are_at_these_steps(every: str, steps: int, expected: list[int]) -> None:
    assert probes(every, steps) == expected


@pytest.mark.parametrize(
    ("settings", "per_epoch", "total"),
    [
        (["train={epochs: 3}"], 11, 33),
        (["train={epochs: 1}"], 5, 5),
        (["train={steps: 7}"], 11, 7),
        (["train={steps: 0}"], 11, 0),
        (["train={}"], 4, 12),
    ],
)
def test_epochs_become_steps(settings: list[str], per_epoch: int, total: int) -> None:
    assert timetable(config_of(*settings), per_epoch, 8, 64).total == total


def test_the_next_probe_and_the_end_of_an_epoch() -> None:
    times = timetable(config_of("probe.every=4", "train.steps=10"), 3, 8, 64)
    assert [times.next_probe(step) for step in range(10)] == [4, 4, 4, 4, 8, 8, 8, 8, 10, 10]
    assert [step for step in range(1, 11) if times.ends_epoch(step)] == [3, 6, 9, 10]
