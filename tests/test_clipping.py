"""Clipping: what lies below the limit is not touched, what lies above ends exactly at it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradexp.errors import ConfigError
from gradexp.optim import CLIPS
from gradexp.records import RunDir
from tests.nets import config_of, run_of

INF, NAN = math.inf, math.nan
KINDS = [("norm", "max_norm"), ("value", "max_value")]
entries = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


def clipped(name: str, gradients: list[list[float]], **options: float) -> list[list[float]]:
    """What a clip makes of gradients in float32, told their total norm as a run tells it."""
    tensors = [torch.tensor(one) for one in gradients]
    total = torch.tensor(norm_of(gradients), dtype=torch.float64).to(torch.float32)
    clip = CLIPS[name].factory(**options)
    assert clip(tensors, total) is None
    return [one.tolist() for one in tensors]


def norm_of(gradients: list[list[float]]) -> float:
    return math.hypot(*(value for one in gradients for value in one))


def test_no_clip_is_no_function_at_all() -> None:
    assert CLIPS["none"].factory() is None


@pytest.mark.parametrize(
    ("max_norm", "gradients", "expected"),
    [
        (5.0, [[3.0], [4.0, 0.0]], [[3.0], [4.0, 0.0]]),  # at the limit
        (5.5, [[3.0], [4.0, 0.0]], [[3.0], [4.0, 0.0]]),
        (1e9, [[3.0], [4.0, 0.1]], [[3.0], [4.0, 0.1]]),
        (1.0, [[0.3], [0.1, -0.2]], [[0.3], [0.1, -0.2]]),
        (4.0, [[3.0], [4.0, 0.0]], [[2.4], [3.2, 0.0]]),
        (2.5, [[3.0], [-4.0, 0.0]], [[1.5], [-2.0, 0.0]]),
        (1.0, [[1e-30], [0.0, 0.0]], [[1e-30], [0.0, 0.0]]),
        (1.0, [[0.0], [0.0, 0.0]], [[0.0], [0.0, 0.0]]),
        (1.0, [[3e18], [-4e18, 0.0]], [[0.6], [-0.8, 0.0]]),
    ],
)
def test_by_norm(
    max_norm: float, gradients: list[list[float]], expected: list[list[float]]
) -> None:
    after = clipped("norm", gradients, max_norm=max_norm)
    wanted = torch.tensor([value for one in expected for value in one])
    values = torch.tensor([value for one in after for value in one])
    torch.testing.assert_close(values, wanted, rtol=2e-7, atol=0)
    if gradients == expected:
        assert torch.equal(values, wanted)


@pytest.mark.parametrize("bad", [INF, -INF, NAN])
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e6])
def test_a_norm_that_is_not_finite_clips_nothing(bad: float, max_norm: float) -> None:
    after = clipped("norm", [[2.0, bad], [-300.0]], max_norm=max_norm)
    np.testing.assert_array_equal(after[0], [2.0, bad])
    assert after[1] == [-300.0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (0.5, 0.5),
        (-0.5, -0.5),
        (0.75, 0.75),
        (-0.75, -0.75),
        (0.76, 0.75),
        (-0.76, -0.75),
        (0.0, 0.0),
        (1e30, 0.75),
        (INF, 0.75),
        (-INF, -0.75),
        (NAN, NAN),
    ],
)
def test_by_value(before: float, after: float) -> None:
    """Each entry for itself, whatever stands beside it."""
    results = clipped("value", [[before, 0.125], [9.0, -9.0]], max_value=0.75)
    np.testing.assert_array_equal(results[0], np.float32([after, 0.125]))
    assert results[1] == [0.75, -0.75]


@pytest.mark.parametrize(("name", "option"), KINDS)
def test_the_limit_is_1_unless_given(name: str, option: str) -> None:
    gradients = [[3.0, -4.0]]
    assert clipped(name, gradients) == clipped(name, gradients, **{option: 1.0})
    assert clipped(name, gradients) != clipped(name, gradients, **{option: 1.5})


@settings(deadline=None, derandomize=True)
@given(
    gradients=st.lists(st.lists(entries, min_size=1, max_size=4), min_size=1, max_size=4),
    max_norm=st.floats(1e-3, 1e6),
)
def test_one_factor_for_all_gradients(gradients: list[list[float]], max_norm: float) -> None:
    """min(1, max_norm / norm): direction and proportions stay."""
    norm = norm_of(gradients)
    factor = min(1.0, max_norm / norm) if norm else 1.0
    after = clipped("norm", gradients, max_norm=max_norm)
    for one, before in zip(after, gradients, strict=True):
        assert one == pytest.approx([factor * value for value in before], rel=1e-6, abs=1e-37)
    if norm < max_norm * (1 - 1e-6):
        assert after == gradients


@settings(deadline=None, derandomize=True)
@given(gradient=st.lists(entries, min_size=1, max_size=6), limit=st.floats(2**-10, 2**20, width=32))
def test_each_entry_within_the_limit(gradient: list[float], limit: float) -> None:
    expected = [max(-limit, min(limit, value)) for value in gradient]
    assert clipped("value", [gradient], max_value=limit) == [expected]


# --- in a run --------------------------------------------------------------------------------


def columns(run: RunDir, table: str, *names: str) -> dict[str, list[float]]:
    frame = run.read(table)
    return {name: frame[name].tolist() for name in names}


def table(run: RunDir, name: str) -> str:
    return run.table_path(name).read_text()


@pytest.mark.parametrize(("name", "option"), KINDS)
def test_a_limit_that_is_never_met_leaves_no_trace(tmp_path: Path, name: str, option: str) -> None:
    plain = run_of(tmp_path)
    clip = run_of(tmp_path, f"train.clip={{name: {name}, {option}: 1e6}}")
    assert clip.path != plain.path
    assert set(clip.read("steps")["clip_coefficient"]) == {1.0}
    for one in ("gradients", "signal", "units"):
        assert table(clip, one) == table(plain, one), one


def limit_between(tmp_path: Path, *overrides: str) -> tuple[float, list[float]]:
    """The middle of the gradient norms of an unclipped run, and the norms."""
    norms = run_of(tmp_path, *overrides).read("steps")["grad_norm"].tolist()
    return float(np.median(norms)), norms


def test_a_run_is_clipped_at_the_steps_above_the_limit_alone(tmp_path: Path) -> None:
    """A rate of next to nothing: every step has the gradients of the unclipped run."""
    still = ("train.optimizer={name: sgd, lr: 1e-9}", "train.steps=10")
    limit, norms = limit_between(tmp_path, *still)
    assert min(norms) < limit < max(norms)
    run = run_of(tmp_path, *still, f"train.clip={{name: norm, max_norm: {limit}}}")
    steps = columns(run, "steps", "grad_norm", "clip_coefficient")
    assert steps["grad_norm"] == pytest.approx(norms, rel=1e-5)
    expected = [min(1.0, limit / norm) for norm in norms]
    assert steps["clip_coefficient"] == pytest.approx(expected, rel=1e-5)
    below = [
        ratio
        for ratio, norm in zip(steps["clip_coefficient"], norms, strict=True)
        if norm < limit * (1 - 1e-5)
    ]
    assert set(below) == {1.0}
    rows = run.read("gradients").merge(run.read("steps"), on="step", suffixes=("", "_of_all"))
    assert rows["clipped_grad_norm"].tolist() == pytest.approx(
        (rows["grad_norm"] * rows["clip_coefficient"]).tolist(), rel=1e-5
    )


@pytest.mark.parametrize(("name", "option"), KINDS)
def test_the_optimizer_gets_the_clipped_gradients(tmp_path: Path, name: str, option: str) -> None:
    """Plain gradient descent: the weights move by the rate times what it got."""
    run = run_of(
        tmp_path,
        "train.optimizer={name: sgd, lr: 0.5}",
        f"train.clip={{name: {name}, {option}: 0.01}}",
    )
    rows = columns(run, "gradients", "grad_norm", "clipped_grad_norm", "update_norm")
    moved = [0.5 * norm for norm in rows["clipped_grad_norm"]]
    assert rows["update_norm"] == pytest.approx(moved, rel=1e-3)
    assert all(
        after < before
        for after, before in zip(rows["clipped_grad_norm"], rows["grad_norm"], strict=True)
    )
    assert all(0 < ratio < 1 for ratio in run.read("steps")["clip_coefficient"])


ALL_KINDS = [("none", ""), *((name, f", {option}: 0.5") for name, option in KINDS)]


@pytest.mark.parametrize(("name", "option"), ALL_KINDS)
def test_no_gradient_at_all_is_not_clipped(tmp_path: Path, name: str, option: str) -> None:
    """All signal underflows on its way: zero gradients, and the coefficient is 1."""
    run = run_of(
        tmp_path,
        "model={family: mlp, depth: 3, bias: false, init: {name: normal, std: 1e-30}}",
        f"train.clip={{name: {name}{option}}}",
    )
    steps = columns(run, "steps", "grad_norm", "clip_coefficient")
    assert steps == {"grad_norm": [0.0] * 4, "clip_coefficient": [1.0] * 4}


@pytest.mark.parametrize(("name", "option"), ALL_KINDS)
def test_the_coefficient_of_a_gradient_that_is_not_finite_is_unknown(
    tmp_path: Path, name: str, option: str
) -> None:
    run = run_of(
        tmp_path,
        "model={family: mlp, depth: 3, activation: identity, init: {name: normal, std: 1e20}}",
        f"train.clip={{name: {name}{option}}}",
    )
    assert run.read("steps")["clip_coefficient"].isna().tolist() == [True]


@pytest.mark.parametrize(("name", "option"), KINDS)
@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_must_be_above_0(name: str, option: str, limit: int) -> None:
    with pytest.raises(ConfigError, match=rf"train\.clip\.{option}"):
        config_of(f"train.clip={{name: {name}, {option}: {limit}}}")
