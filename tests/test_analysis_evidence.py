"""Tables to evidence: bounded, complete, tolerant; and the copy that is kept of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import theilslopes

from gradexp.analysis import evidence_of
from gradexp.analysis.decay import decay_per_layer, over_depth
from gradexp.analysis.evidence import MAX_CURVE_POINTS, MAX_GRADIENT_STEPS, MAX_PROBES, thin
from gradexp.records import RunDir
from tests.fabricated_runs import Fabricated

NORMS = arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(2, 12)), elements=st.floats(1e-30, 1e30)
)


@settings(deadline=None)
@given(NORMS)
def test_decay_is_the_theil_sen_slope(norms: np.ndarray) -> None:
    expected = [theilslopes(np.log10(row)).slope for row in norms]
    assert decay_per_layer(norms) == pytest.approx(expected, abs=1e-9)


def test_decay_ignores_outlying_layers_and_exact_zeros() -> None:
    norms = 10.0 ** np.arange(-10, 0)
    norms[[2, 5]] = [1e12, 0.0]
    assert decay_per_layer(norms[None]) == pytest.approx(1.0)


@settings(deadline=None)
@given(NORMS)
def test_largest_fall_and_rise_agree_with_looking_at_every_pair(norms: np.ndarray) -> None:
    depth = over_depth(norms)
    log = np.log10(norms)
    pairs = [(i, j) for i in range(log.shape[1]) for j in range(i, log.shape[1])]
    assert depth.drop == pytest.approx([max(row[j] - row[i] for i, j in pairs) for row in log])
    assert depth.rise == pytest.approx([max(row[i] - row[j] for i, j in pairs) for row in log])


def test_a_non_finite_probe_has_no_fall() -> None:
    depth = over_depth(np.array([[1e-9, np.nan, 1.0], [1e-9, np.inf, 1.0]]))
    assert np.isnan(depth.drop).all()
    assert np.isnan(depth.rise).all()


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(2, 40))
def test_thinning_keeps_both_ends_in_order(count: int, at_most: int) -> None:
    kept = thin(count, at_most).tolist()
    assert kept[0] == 0
    assert kept[-1] == count - 1
    assert kept == sorted(set(kept))
    assert len(kept) == min(count, at_most)


def test_evidence_stays_bounded_and_keeps_events(tmp_path: Path) -> None:
    deaths = [min(16, step) for step in range(60)]
    run = Fabricated(steps=400, probes=60, dead={2: deaths}).write(tmp_path / "run")
    evidence = evidence_of(run)
    assert len(evidence.probes) == MAX_PROBES
    assert len(evidence.gradients.step) == MAX_GRADIENT_STEPS
    assert len(evidence.curve.step) == MAX_CURVE_POINTS
    assert evidence.probes.died[-1, 1] == 16  # no event is lost by thinning
    assert evidence.totals.steps == 400


def test_figures_that_do_not_apply_are_nan_not_zero(tmp_path: Path) -> None:
    evidence = evidence_of(Fabricated(activation="sigmoid").write(tmp_path / "run"))
    assert np.isnan(evidence.probes.dead).all()
    assert np.isnan(evidence.probes.saturated_fraction[:, -1]).all()


def test_a_probe_that_is_not_all_written_is_left_out(tmp_path: Path) -> None:
    run = Fabricated(probes=3).write(tmp_path / "run")
    path = run.table_path("signal")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + "40,5,hid")
    assert evidence_of(run).probes.step.tolist() == [0, 20]


@pytest.mark.parametrize("table", ["signal", "units", "gradients", "steps", "epochs"])
def test_a_table_that_is_not_there_yet_is_empty(tmp_path: Path, table: str) -> None:
    run = Fabricated().write(tmp_path / "run")
    run.table_path(table).unlink()
    assert len(evidence_of(run).layers) == 6


def test_the_first_non_finite_value_is_located(tmp_path: Path) -> None:
    evidence = evidence_of(Fabricated(non_finite_from=7).write(tmp_path / "run"))
    assert evidence.non_finite is not None
    assert (evidence.non_finite.step, evidence.non_finite.tensor) == (7, "loss")


def test_a_non_finite_gradient_is_traced_to_the_layer_nearest_the_output(tmp_path: Path) -> None:
    profile = [np.nan, np.nan, np.nan, 1.0, 1.0, 1.0]
    evidence = evidence_of(Fabricated(pre_grad_norm=profile).write(tmp_path / "run"))
    assert evidence.non_finite is not None
    assert (evidence.non_finite.layer, evidence.non_finite.tensor) == ("hidden.3", "gradient")


def _plain(run: RunDir) -> str:
    return repr(evidence_of(run))


def test_the_kept_copy_says_the_same_and_follows_the_tables(tmp_path: Path) -> None:
    run = Fabricated(steps=30).write(tmp_path / "run")
    fresh = _plain(run)
    copy = run.path / "evidence.json"
    assert copy.is_file()
    assert _plain(run) == fresh
    with run.table_path("steps").open("a") as file:
        file.write("30,2,0.1,0.99,0.1,1,1,0.01\n")
    assert evidence_of(run).totals.steps == 31


@pytest.mark.parametrize("content", ["", "{", '{"key": 1}', "[]", '{"key": [1], "evidence": {}}'])
def test_a_damaged_copy_is_made_again(tmp_path: Path, content: str) -> None:
    run = Fabricated().write(tmp_path / "run")
    fresh = _plain(run)
    (run.path / "evidence.json").write_text(content)
    assert _plain(run) == fresh
    assert json.loads((run.path / "evidence.json").read_text())["evidence"]


def test_a_run_of_one_layer_has_no_decay(tmp_path: Path) -> None:
    evidence = evidence_of(Fabricated(depth=1).write(tmp_path / "run"))
    assert all(map(math.isnan, evidence.depth.decay))
