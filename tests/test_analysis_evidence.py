"""Tables to evidence: bounded, complete, tolerant; and the copy that is kept of it."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import theilslopes

from gradexp.analysis import cache, evidence_of
from gradexp.analysis.decay import decay_per_layer, over_depth
from gradexp.analysis.evidence import (
    MAX_CURVE_POINTS,
    MAX_GRADIENT_STEPS,
    MAX_PROBES,
    gather,
    thin,
)
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
    """A layer has at least what passes it: the highest of both sides, of which the lower counts."""
    depth = over_depth(norms)
    layers = range(norms.shape[1])
    log = [
        [min(max(row[: i + 1]), max(row[i:])) for i in layers] for row in np.log10(norms).tolist()
    ]
    pairs = [(i, j) for i in layers for j in layers[i:]]
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
    assert len(evidence.probes) == MAX_PROBES == 12
    assert len(evidence.gradients.step) == MAX_GRADIENT_STEPS == 24
    assert len(evidence.curve.step) == MAX_CURVE_POINTS == 64
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


def rewritten(run: RunDir, table: str, old: str, new: str, later: float = 0.0) -> None:
    """Change a table, its time of change and nothing else; `later` in seconds."""
    path = run.table_path(table)
    changed = path.stat().st_mtime_ns + round(later * 1e9)
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, ns=(changed, changed))


@pytest.mark.parametrize("table", ["layers", "signal", "units", "gradients", "steps", "epochs"])
def test_a_table_that_changed_but_not_in_size_is_read_again(tmp_path: Path, table: str) -> None:
    run = Fabricated().write(tmp_path / "run")
    before = _plain(run)
    old, new = {
        "layers": ("hidden.1", "hidden.9"),
        "signal": (",0.6,", ",0.7,"),
        "units": (",0.5,", ",0.7,"),
        "gradients": (",0.004", ",0.005"),
        "steps": (",2.3,", ",2.4,"),
        "epochs": (",0.88,", ",0.77,"),
    }[table]
    size = run.table_path(table).stat().st_size
    rewritten(run, table, old, new, later=1e-6)
    assert run.table_path(table).stat().st_size == size
    assert _plain(run) != before


def test_a_table_that_grew_within_one_tick_of_the_clock_is_read_again(tmp_path: Path) -> None:
    run = Fabricated(steps=30).write(tmp_path / "run")
    assert evidence_of(run).totals.steps == 30
    last = run.table_path("steps").read_text().splitlines()[-1]
    rewritten(run, "steps", f"{last}\n", f"{last}\n30{last[2:]}\n")
    assert evidence_of(run).totals.steps == 31


def test_a_table_that_appears_is_read(tmp_path: Path) -> None:
    run = Fabricated().write(tmp_path / "run")
    path = run.table_path("epochs")
    content = path.read_text()
    path.unlink()
    assert math.isnan(evidence_of(run).totals.test_loss)
    path.write_text(content)
    assert evidence_of(run).totals.test_loss == 0.3


class Reads:
    """Counts the tables that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tables: list[str] = []
        read = RunDir.read

        def recorded(run: RunDir, table: str) -> Any:
            self.tables.append(table)
            return read(run, table)

        monkeypatch.setattr(RunDir, "read", recorded)

    def of(self, run: RunDir) -> int:
        before = len(self.tables)
        evidence_of(run)
        return len(self.tables) - before


def test_tables_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Fabricated().write(tmp_path / "run")
    reads = Reads(monkeypatch)
    assert reads.of(run) > 0
    assert reads.of(run) == 0
    # Other files of a run say nothing that the evidence holds.
    run.write_manifest({"status": "failed"})
    run.config.write_text("name: other\n")
    assert reads.of(run) == 0


def test_a_copy_that_another_version_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Fabricated().write(tmp_path / "run")
    reads = Reads(monkeypatch)
    evidence_of(run)
    monkeypatch.setattr(cache, "gathering", lambda: "in another way")
    assert reads.of(run) > 0
    assert reads.of(run) == 0


def test_a_run_that_cannot_be_written_to_is_read_all_the_same(tmp_path: Path) -> None:
    run = Fabricated().write(tmp_path / "run")
    fresh = _plain(run)
    run.evidence.unlink()
    run.evidence.mkdir()  # in the way of reading and of writing, for whoever tries
    assert _plain(run) == fresh
    assert [path.name for path in run.path.iterdir() if path.suffix == ".tmp"] == []


@pytest.mark.parametrize("non_finite_from", [None, 3])
def test_the_copy_keeps_every_value(tmp_path: Path, non_finite_from: int | None) -> None:
    profile = 10.0 ** np.linspace(-40, 30, 6) / 3
    run = Fabricated(pre_grad_norm=profile, non_finite_from=non_finite_from).write(tmp_path / "run")
    gathered = gather(run)
    for evidence in (evidence_of(run), evidence_of(run)):
        for name, part in asdict(gathered).items():
            kept = asdict(evidence)[name]
            if name in {"layers", "totals", "non_finite"}:
                assert repr(kept) == repr(part), name
                continue
            for column, values in part.items():
                assert kept[column].shape == values.shape, column
                assert kept[column] == pytest.approx(values, rel=1e-5, abs=0, nan_ok=True), column


@pytest.mark.parametrize(("steps", "probes"), [(0, 1), (4, 0), (0, 0)])
def test_the_copy_keeps_shapes_without_rows(tmp_path: Path, steps: int, probes: int) -> None:
    run = Fabricated(steps=steps, probes=probes).write(tmp_path / "run")
    for evidence in (evidence_of(run), evidence_of(run)):
        assert evidence.probes.dead.shape == (probes, 6)
        assert evidence.gradients.grad_norm.shape == (steps, 6)
        assert evidence.depth.decay.shape == (probes,)
        assert evidence.curve.loss.shape == (steps,)


def test_a_run_of_one_layer_has_no_decay(tmp_path: Path) -> None:
    evidence = evidence_of(Fabricated(depth=1).write(tmp_path / "run"))
    assert all(map(math.isnan, evidence.depth.decay))
