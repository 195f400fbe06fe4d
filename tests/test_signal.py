"""Signal: means, deviations, per-example gradients and saturation against a slow float64 look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradexp.records import RunDir
from tests.reference import CASES, Reference, config_of, run_of


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunDir, Reference]:
    folder = tmp_path_factory.mktemp("case")
    overrides = CASES[request.param]
    return run_of(folder, *overrides), Reference(config_of(folder, *overrides))


@pytest.mark.parametrize("step", [0, 3, 6])
def test_signal_of_every_layer(case: tuple[RunDir, Reference], step: int) -> None:
    run, reference = case
    rows = run.read("signal").query(f"step == {step}")
    looks = reference.look(step)
    assert len(rows) == len(looks)
    for row, look in zip(rows.itertuples(), looks, strict=True):
        expected = [look.pre.mean(), look.pre.std(), look.post.mean(), look.post.std()]
        measured = [row.pre_mean, row.pre_std, row.post_mean, row.post_std]
        tolerance = 1e-4 if step == 0 else 2e-3
        np.testing.assert_allclose(measured, expected, rtol=tolerance, atol=tolerance / 10)
        assert row.pre_grad_norm == pytest.approx(look.pre_grad_norm, rel=tolerance)


@pytest.mark.parametrize("step", [0, 6])
def test_saturated_fraction(case: tuple[RunDir, Reference], step: int) -> None:
    run, reference = case
    rows = run.read("signal").query(f"step == {step}")
    *hidden, readout = zip(rows.itertuples(), reference.look(step), strict=True)
    assert np.isnan(readout[0].saturated_fraction)
    for row, look in hidden:
        borderline = (np.abs(np.abs(look.slope) - 0.02) < 1e-4).mean()
        expected = (np.abs(look.slope) < 0.02).mean()
        assert row.saturated_fraction == pytest.approx(expected, abs=1e-9 + borderline)


def test_saturation_is_really_met(tmp_path: Path) -> None:
    """A sigmoid is saturated where pre is beyond 3.89; wide weights push half of it there."""
    net = (
        "model={family: mlp, depth: 2, width: 7, activation: sigmoid}",
        "model.init={name: normal, std: 2.0}",
        "train.steps=0",
    )
    row = run_of(tmp_path, *net).read("signal").iloc[0]
    pre = Reference(config_of(tmp_path, *net)).look(0)[0].pre
    expected = (np.abs(pre) > np.log((1 + np.sqrt(1 - 0.08)) / (1 - np.sqrt(1 - 0.08)))).mean()
    assert 0.1 < expected < 0.99
    assert row["saturated_fraction"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("examples", ["1", "7", "39", "40", "all", "1000"])
def test_every_example_of_the_probe_set_counts_once(tmp_path: Path, examples: str) -> None:
    """Whatever the batches; `all` and more than there are mean all 40."""
    override = f"probe.examples={examples}"
    run = run_of(tmp_path, override, "train.steps=0", "data.batch_size=9")
    count = 40 if examples in {"all", "1000"} else int(examples)
    reference = Reference(config_of(tmp_path, override, "train.steps=0", "data.batch_size=9"))
    for row, look in zip(run.read("signal").itertuples(), reference.look(0), strict=True):
        assert len(look.pre) == count
        assert row.pre_mean == pytest.approx(look.pre.mean(), rel=1e-4, abs=1e-6)
        assert row.pre_std == pytest.approx(look.pre.std(), rel=1e-4)
        assert row.pre_grad_norm == pytest.approx(look.pre_grad_norm, rel=1e-4)
    summary = run.read_summary()
    assert summary["probe_examples"] == count


def test_batch_norm_never_meets_a_probe_batch_of_one(tmp_path: Path) -> None:
    run = run_of(
        tmp_path, "model.norm=batch", "data.batch_size=2", "probe.examples=5", "train.steps=1"
    )
    assert run.status() == "finished"
    assert np.isfinite(run.read("signal")["pre_std"]).all()


def test_a_collapsed_signal_has_no_deviation(tmp_path: Path) -> None:
    """All units of a layer without fan-in influence are equal: std is 0, not rounding."""
    run = run_of(
        tmp_path,
        "model={family: mlp, depth: 3, width: 7, activation: sigmoid}",
        "model.init={name: normal, std: 1e-30}",
        "train.steps=0",
    )
    deep = run.read("signal").query("layer_index == 3").iloc[0]
    assert deep["post_mean"] == 0.5
    assert deep["post_std"] == 0.0
    assert deep["pre_std"] < 1e-28
