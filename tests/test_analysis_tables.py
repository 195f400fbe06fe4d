"""Every figure of the evidence beside a slow second computation from the CSV files."""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradexp.analysis import QUANTITIES, QUANTITY, Evidence, evidence_of
from gradexp.analysis.decay import decay_per_layer, over_depth
from gradexp.analysis.evidence import FirstNonFinite, thin
from gradexp.analysis.learning import learning
from gradexp.records import RunDir
from tests.fabricated_runs import Fabricated

NAN = math.nan
PROBED = {
    "signal": ("pre_std", "post_std", "pre_grad_norm", "saturated_fraction"),
    "units": ("dead", "died", "revived", "inactive_fraction", "zero_grad_fraction"),
}
CURVES = ("loss", "accuracy", "lr", "grad_norm", "clip_coefficient")


def close(expected: Any) -> Any:
    """Equal to five digits: the evidence keeps six."""
    return pytest.approx(expected, rel=1e-5, nan_ok=True)


def random_columns(seed: int, depth: int, probes: int, steps: int, epochs: int) -> dict[str, Any]:
    """Values for every column that the evidence looks at; each draw with its own."""
    rng = np.random.default_rng(seed)

    def positive(*shape: int) -> Any:
        return rng.lognormal(0, 1, shape)

    dead = rng.integers(0, 16, (probes, depth)).astype(object)
    dead[:, rng.random(depth) < 0.3] = None  # no flat region: these have no dead units
    columns = {f"signal.{name}": positive(probes, depth) for name in PROBED["signal"][:3]}
    columns |= {f"steps.{name}": positive(steps) for name in CURVES}
    columns |= {
        f"gradients.{name}": positive(steps, depth)
        for name in ("grad_norm", "weight_norm", "update_norm")
    }
    columns["layers.units"] = rng.integers(2, 40, depth)
    columns["signal.saturated_fraction"] = np.where(
        rng.random((probes, depth)) < 0.2, NAN, rng.random((probes, depth))
    )
    columns["units.dead"] = dead
    columns["units.inactive_fraction"] = rng.random((probes, depth))
    columns["units.zero_grad_fraction"] = rng.random((probes, depth))
    for name in ("died", "revived"):
        columns[f"units.{name}"] = rng.integers(0, 5, (probes, depth))
    for name in ("test_loss", "test_accuracy"):
        columns[f"epochs.{name}"] = positive(epochs)
    return columns


def shuffled(run: RunDir, *tables: str) -> None:
    """The rows of a table carry their step and layer: their order in the file says nothing."""
    for table in tables:
        path = run.table_path(table)
        pd.read_csv(path, dtype=str, keep_default_na=False).sample(frac=1, random_state=0).to_csv(
            path, index=False
        )


def table(run: RunDir, name: str) -> pd.DataFrame:
    return pd.read_csv(run.path / f"{name}.csv")


def grid(run: RunDir, name: str, column: str) -> pd.DataFrame:
    """A column as (steps, layers)."""
    return table(run, name).pivot_table(
        index="step", columns="layer_index", values=column, dropna=False
    )


def evenly(count: int, at_most: int) -> list[int]:
    """Both ends and what lies nearest to equal distances between them."""
    few = min(count, at_most)
    return [round(i * (count - 1) / max(1, few - 1)) for i in range(few)]


def median(values: Any) -> float:
    ordered = sorted(float(value) for value in values)
    middle = len(ordered) // 2
    both = ordered[middle], ordered[middle - 1 + len(ordered) % 2]
    return sum(both) / 2


runs = given(
    seed=st.integers(0, 2**32 - 1),
    depth=st.integers(1, 5),
    probes=st.integers(1, 30),
    steps=st.integers(1, 140),
    epochs=st.integers(1, 3),
)


@settings(max_examples=10, deadline=None)
@runs
def test_evidence_agrees_with_pandas(tmp_path_factory: pytest.TempPathFactory, **size: int) -> None:
    seed = size.pop("seed")
    size["probes"] = min(size["probes"], size["steps"] + 1)  # every probe at a step of its own
    columns = random_columns(seed, **size)
    run = Fabricated(**size, columns=columns).write(tmp_path_factory.mktemp("run") / "run")
    shuffled(run, "layers", "signal", "units", "gradients")
    evidence = evidence_of(run)
    agree_on_layers(run, evidence)
    agree_on_probes(run, evidence)
    agree_on_gradients(run, evidence)
    agree_on_curve(run, evidence)
    agree_on_totals(run, evidence)
    agree_on_quantities(run, evidence)
    assert evidence.non_finite is None


def agree_on_layers(run: RunDir, evidence: Evidence) -> None:
    layers = table(run, "layers").sort_values("layer_index")
    for name in ("layer", "kind", "activation", "norm"):
        assert list(getattr(evidence.layers, name)) == layers[name].tolist()
    assert evidence.layers.units.tolist() == layers["units"].tolist()


def agree_on_probes(run: RunDir, evidence: Evidence) -> None:
    steps = sorted(table(run, "signal")["step"].unique())
    kept = [steps[i] for i in evenly(len(steps), 12)]
    assert evidence.probes.step.tolist() == kept
    for name, columns in PROBED.items():
        for column in columns:
            values = grid(run, name, column)
            if column in {"died", "revived"}:
                values = values.cumsum()
            assert getattr(evidence.probes, column) == close(values.loc[kept].to_numpy())


def agree_on_gradients(run: RunDir, evidence: Evidence) -> None:
    norms = {n: grid(run, "gradients", n) for n in ("grad_norm", "weight_norm", "update_norm")}
    steps = norms["grad_norm"].index
    kept = steps[evenly(len(steps), 24)]
    assert evidence.gradients.step.tolist() == kept.tolist()
    assert evidence.gradients.grad_norm == close(norms["grad_norm"].loc[kept].to_numpy())
    ratio = (norms["update_norm"] / norms["weight_norm"]).loc[kept]
    assert evidence.gradients.update_ratio == close(ratio.to_numpy())


def agree_on_curve(run: RunDir, evidence: Evidence) -> None:
    steps = table(run, "steps")
    few = min(64, len(steps))
    bounds = [i * len(steps) // few for i in range(few + 1)]
    parts = [steps.iloc[a:b] for a, b in pairwise(bounds)]
    assert evidence.curve.step.tolist() == [part["step"].iloc[-1] for part in parts]
    for name in CURVES:
        assert getattr(evidence.curve, name) == close([part[name].mean() for part in parts])


def agree_on_totals(run: RunDir, evidence: Evidence) -> None:
    steps, epochs, totals = table(run, "steps"), table(run, "epochs"), evidence.totals
    count = len(steps)
    late = steps.tail(max(5, count // 10))
    assert totals.steps == count
    assert totals.train_loss == pytest.approx(late["loss"].mean())
    assert totals.train_accuracy == pytest.approx(late["accuracy"].mean())
    assert totals.test_loss == epochs["test_loss"].iloc[-1]
    assert totals.test_accuracy == epochs["test_accuracy"].iloc[-1]
    start = median(steps["grad_norm"].head(10))
    assert totals.growth == pytest.approx(steps["grad_norm"].max() / start)
    assert totals.growth_step == steps.loc[steps["grad_norm"].idxmax(), "step"]
    if count >= 4:
        sizes = [count // 4 + (i < count % 4) for i in range(4)]
        ends = np.cumsum(sizes)
        quarters = [steps["loss"][end - n : end] for n, end in zip(sizes, ends, strict=True)]
        assert totals.loss_quarters == pytest.approx([median(part) for part in quarters])
        last = steps["loss"].tail(count // 4)
        deviation = 1.4826 * median(abs(last - median(last)))
        error = math.sqrt(math.pi / 2) * deviation / math.sqrt(len(last))
        assert totals.loss_error == pytest.approx(error, rel=1e-4)
    else:
        assert totals.loss_quarters == pytest.approx((NAN,) * 4, nan_ok=True)


def agree_on_quantities(run: RunDir, evidence: Evidence) -> None:
    units = table(run, "layers").set_index("layer_index")["units"].sort_index()
    dead = grid(run, "units", "dead")
    counted = dead.columns[dead.notna().all()]
    late = {
        name: getattr(evidence.totals, name)
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    }
    saturated = grid(run, "signal", "saturated_fraction").iloc[-1].dropna()
    ratios = evidence.gradients.update_ratio.ravel()
    expected = late | {
        "decay_start": evidence.depth.decay[0],
        "decay": evidence.depth.decay[-1],
        "born_dead_fraction": dead.loc[0, counted].sum() / max(1, units[counted].sum()),
        "dead_fraction": dead[counted].iloc[-1].sum() / max(1, units[counted].sum()),
        "saturated_fraction": median(saturated) if len(saturated) else NAN,
        "update_ratio": median(ratios),
    }
    if len(counted) == 0:
        expected |= {"born_dead_fraction": NAN, "dead_fraction": NAN}
    found = {quantity.name: quantity.of(evidence) for quantity in QUANTITIES}
    assert found == {name: close(value) for name, value in expected.items()}


def test_the_last_epoch_counts(tmp_path: Path) -> None:
    columns = {"epochs.test_loss": [3.0, 2.0, 2.5], "epochs.test_accuracy": [0.1, 0.7, 0.6]}
    run = Fabricated(epochs=3, columns=columns).write(tmp_path / "run")
    totals = evidence_of(run).totals
    assert (totals.test_loss, totals.test_accuracy) == (2.5, 0.6)


@pytest.mark.parametrize(("steps", "late"), [(3, 3), (12, 5), (59, 5), (60, 6), (100, 10)])
def test_training_figures_are_means_over_the_last_tenth(
    tmp_path: Path, steps: int, late: int
) -> None:
    columns = {"steps.loss": [2.0**i for i in range(steps)], "steps.accuracy": np.arange(steps)}
    totals = evidence_of(Fabricated(steps=steps, columns=columns).write(tmp_path / "run")).totals
    assert totals.train_accuracy == pytest.approx(steps - (late + 1) / 2)
    assert totals.train_loss == pytest.approx((2.0**steps - 2.0 ** (steps - late)) / late)


def test_quarters_are_medians(tmp_path: Path) -> None:
    loss = [1, 1, 1, 97, 2, 2, 50, 3, 3, 3, 4, 4, 90]  # 13 steps: the first quarter has four
    columns = {"steps.loss": loss}
    totals = evidence_of(Fabricated(steps=13, columns=columns).write(tmp_path / "run")).totals
    assert totals.loss_quarters == (1, 2, 3, 4)


def test_growth_is_seen_against_the_median_of_the_first_ten_steps(tmp_path: Path) -> None:
    norms = [1.0] * 4 + [90.0, NAN] + [3.0] * 4 + [80.0] * 10 + [math.inf, 120.0, 7.0]
    # In order: nan as 0, four 1, four 3, 90: their median is 2.
    run = Fabricated(steps=23, columns={"steps.grad_norm": norms}).write(tmp_path / "run")
    totals = evidence_of(run).totals
    assert (totals.growth, totals.growth_step) == (60.0, 21)


@pytest.mark.parametrize("norms", [[0.0] * 6 + [1.0] * 6, [NAN] * 6 + [1.0] * 6])
def test_a_start_of_nothing_has_no_growth(tmp_path: Path, norms: list[float]) -> None:
    run = Fabricated(steps=12, columns={"steps.grad_norm": norms}).write(tmp_path / "run")
    totals = evidence_of(run).totals
    assert math.isnan(totals.growth)
    assert totals.growth_step == 0


def test_a_run_without_a_step_has_no_totals(tmp_path: Path) -> None:
    totals = asdict(evidence_of(Fabricated(steps=0, probes=1).write(tmp_path / "run")).totals)
    assert (totals.pop("steps"), totals.pop("growth_step")) == (0, 0)
    assert all(map(math.isnan, totals.pop("loss_quarters")))
    assert all(map(math.isnan, totals.values()))


def test_a_curve_is_nan_where_a_stretch_has_a_nan(tmp_path: Path) -> None:
    loss = np.arange(128.0)
    loss[50] = NAN
    run = Fabricated(steps=128, columns={"steps.loss": loss}).write(tmp_path / "run")
    curve = evidence_of(run).curve
    assert curve.step.tolist() == list(range(1, 128, 2))
    expected = [2 * i + 0.5 for i in range(64)]
    assert curve.loss[:25].tolist() == expected[:25]
    assert math.isnan(curve.loss[25])


def test_thinning_is_even() -> None:
    assert thin(5, 3).tolist() == [0, 2, 4]
    assert thin(10, 4).tolist() == [0, 3, 6, 9]
    assert thin(9, 4).tolist() == [0, 3, 5, 8]
    assert thin(1, 12).tolist() == [0]
    assert thin(0, 12).tolist() == []


def test_a_probe_counts_only_when_both_of_its_tables_have_it(tmp_path: Path) -> None:
    run = Fabricated(probes=5, columns={"signal.pre_std": np.arange(30).reshape(5, 6)}).write(
        tmp_path / "run"
    )
    path = run.table_path("units")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("20,")))
    probes = evidence_of(run).probes
    assert probes.step.tolist() == [0, 10, 30, 40]
    assert probes.pre_std[:, 0].tolist() == [0, 6, 18, 24]


def test_layers_that_the_layer_table_does_not_have_are_left_out(tmp_path: Path) -> None:
    run = Fabricated(probes=2).write(tmp_path / "run")
    for name, row in (("signal", "0,7,x,1,1,1,1,9,\n"), ("units", "0,7,x,3,,,,,,,0,\n")):
        with run.table_path(name).open("a") as file:
            file.write(row)
    probes = evidence_of(run).probes
    assert probes.step.tolist() == [0, 40]
    assert probes.pre_grad_norm.shape == (2, 6)


# What becomes non-finite within one step, in the order in which it spreads; the layers that show it
# and the one that is blamed: nearest the input for what goes forward, the output for what returns.
SPREAD: tuple[tuple[str, tuple[int, ...], FirstNonFinite], ...] = (
    ("gradients.weight_norm", (3, 4), FirstNonFinite(0, "hidden.3", "weight")),
    ("signal.pre_std", (2, 4), FirstNonFinite(0, "hidden.2", "activation")),
    ("signal.post_std", (4, 5), FirstNonFinite(0, "hidden.4", "activation")),
    ("steps.loss", (), FirstNonFinite(0, "", "loss")),
    ("signal.pre_grad_norm", (1, 5), FirstNonFinite(0, "hidden.5", "gradient")),
    ("gradients.grad_norm", (1, 3), FirstNonFinite(0, "hidden.3", "gradient")),
    ("steps.grad_norm", (), FirstNonFinite(0, "", "gradient")),
)


def broken(column: str, layers: tuple[int, ...], step: int, bad: float) -> dict[str, Any]:
    """The column with what is not finite from a step on; ten probes, one a step."""
    if not layers:
        return {column: np.where(np.arange(10) >= step, bad, 1.0)}
    shown = np.isin(np.arange(1, 7), layers) & (np.arange(10)[:, None] >= step)
    return {column: np.where(shown, bad, 1.0)}


def first_bad(path: Path, columns: dict[str, Any]) -> FirstNonFinite | None:
    run = Fabricated(steps=10, probes=10, columns=columns)
    run.columns |= {"signal.step": np.arange(10)[:, None], "units.step": np.arange(10)[:, None]}
    written = run.write(path)
    shuffled(written, "signal", "gradients")
    return evidence_of(written).non_finite


@pytest.mark.parametrize("at", range(len(SPREAD)), ids=[column for column, *_ in SPREAD])
def test_within_a_step_what_spreads_first_is_blamed(tmp_path: Path, at: int) -> None:
    columns: dict[str, Any] = {}
    for column, layers, _ in SPREAD[at:]:
        columns |= broken(column, layers, 0, NAN)
    assert first_bad(tmp_path / "run", columns) == SPREAD[at][2]


@pytest.mark.parametrize("at", range(1, len(SPREAD)), ids=[column for column, *_ in SPREAD[1:]])
@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_what_came_earlier_is_blamed_whatever_it_is(tmp_path: Path, at: int, bad: float) -> None:
    columns = broken(*SPREAD[at][:2], 3, bad)
    for column, layers, _ in SPREAD[:at]:
        columns |= broken(column, layers, 4, bad)
    found = SPREAD[at][2]
    assert first_bad(tmp_path / "run", columns) == FirstNonFinite(3, found.layer, found.tensor)


@pytest.mark.parametrize(
    "column",
    [
        "gradients.update_norm",
        "gradients.bias_grad_norm",
        "signal.saturated_fraction",
        "steps.clip_coefficient",
        "units.inactive_fraction",
    ],
)
def test_figures_that_may_be_missing_are_no_sign_of_divergence(tmp_path: Path, column: str) -> None:
    assert first_bad(tmp_path / "run", {column: NAN}) is None


def test_a_loss_that_is_nan_is_beyond_every_bound(tmp_path: Path) -> None:
    columns = {"steps.loss": [1.0] * 30 + [NAN] * 10, "epochs.test_loss": [NAN]}
    evidence = evidence_of(Fabricated(columns=columns).write(tmp_path / "run"))
    assert math.isnan(evidence.totals.train_loss)
    assert QUANTITY["train_loss"].of(evidence) == math.inf
    assert QUANTITY["test_loss"].of(evidence) == math.inf


def test_a_loss_that_was_not_measured_is_missing(tmp_path: Path) -> None:
    columns = {"epochs.test_loss": [NAN]}
    evidence = evidence_of(Fabricated(columns=columns).write(tmp_path / "run"))
    assert math.isnan(QUANTITY["test_loss"].of(evidence))
    assert QUANTITY["train_loss"].of(evidence) == pytest.approx(0.3)


def test_figures_are_those_of_the_first_and_the_last_probe(tmp_path: Path) -> None:
    dead = np.array([[4], [9], [6]]) * [1, 1, 1, 1, 1, 0]
    decay = np.array([[0.5], [0.1], [0.25]])
    columns = {
        "units.dead": dead,
        "signal.saturated_fraction": [[0.9] * 6, [0.1] * 6, [0.2, 0.3, 0.4, 0.5, NAN, NAN]],
        "signal.pre_grad_norm": 10.0 ** (decay * np.arange(6)),
    }
    evidence = evidence_of(Fabricated(probes=3, columns=columns).write(tmp_path / "run"))
    figures = {name: quantity.of(evidence) for name, quantity in QUANTITY.items()}
    assert figures["born_dead_fraction"] == 20 / 90
    assert figures["dead_fraction"] == 30 / 90
    assert figures["saturated_fraction"] == pytest.approx(0.35)
    assert figures["decay_start"] == pytest.approx(0.5, rel=1e-5)
    assert figures["decay"] == pytest.approx(0.25, rel=1e-5)


def test_decay_is_that_of_the_probes_that_have_one(tmp_path: Path) -> None:
    profile = 10.0 ** (np.array([[0.0], [0.5], [0.25], [0.0]]) * np.arange(6))
    profile[[0, 3]] = NAN
    evidence = evidence_of(Fabricated(probes=4, pre_grad_norm=profile).write(tmp_path / "run"))
    assert QUANTITY["decay_start"].of(evidence) == pytest.approx(0.5, rel=1e-5)
    assert QUANTITY["decay"].of(evidence) == pytest.approx(0.25, rel=1e-5)


def test_figures_without_a_probe_are_missing(tmp_path: Path) -> None:
    run = Fabricated().write(tmp_path / "run")
    run.table_path("units").unlink()
    run.table_path("gradients").unlink()
    evidence = evidence_of(run)
    for name in ("decay", "decay_start", "dead_fraction", "saturated_fraction", "update_ratio"):
        assert math.isnan(QUANTITY[name].of(evidence)), name


def test_which_figures_are_better_high_or_low() -> None:
    assert {q.name: (q.title, q.unit, q.better) for q in QUANTITIES} == {
        "decay_start": ("decay at the start", "decades / layer", 0),
        "decay": ("decay", "decades / layer", 0),
        "born_dead_fraction": ("born dead", "fraction", -1),
        "dead_fraction": ("dead units", "fraction", -1),
        "saturated_fraction": ("saturated", "fraction", -1),
        "update_ratio": ("update ratio", "update / weight", 0),
        "train_loss": ("train loss", "nats", -1),
        "train_accuracy": ("train accuracy", "fraction", 1),
        "test_loss": ("test loss", "nats", -1),
        "test_accuracy": ("test accuracy", "fraction", 1),
    }


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_how_far_training_came(tmp_path: Path, classes: int) -> None:
    loss = [2.0] * 10 + [1.6] * 10 + [1.8] * 10 + [1.1, 1.3] * 5
    columns = {"layers.units": [7] * 5 + [classes], "steps.loss": loss, "steps.accuracy": 0.8}
    reached = learning(evidence_of(Fabricated(columns=columns).write(tmp_path / "run")))
    assert reached.classes == classes
    assert reached.skill == pytest.approx((0.8 - 1 / classes) / (1 - 1 / classes))
    assert reached.gain == pytest.approx(1 - 1.2 / math.log(classes))
    assert reached.recent_gain == pytest.approx(1 - 1.2 / 1.6)  # from the lowest earlier quarter
    # Two medians of ten steps make the ratio: sqrt 2 times the standard error of one of them.
    one = 1.2533 * 1.4826 * 0.1 / math.sqrt(10)
    assert reached.error == pytest.approx(math.sqrt(2) * one / 1.6)


@pytest.mark.parametrize("units", [None, 1])
def test_there_are_at_least_two_classes(tmp_path: Path, units: int | None) -> None:
    run = Fabricated(columns={"layers.units": [units or 1] * 6}).write(tmp_path / "run")
    if units is None:
        run.table_path("layers").unlink()
    assert learning(evidence_of(run)).classes == 2


def test_nothing_is_learned_without_a_step(tmp_path: Path) -> None:
    reached = learning(evidence_of(Fabricated(steps=0, probes=1).write(tmp_path / "run")))
    assert math.isnan(reached.skill)
    assert math.isnan(reached.gain)
    assert math.isnan(reached.recent_gain)


def test_a_loss_of_zero_is_no_error(tmp_path: Path) -> None:
    reached = learning(evidence_of(Fabricated(loss=(0.0, 0.0)).write(tmp_path / "run")))
    assert reached.gain == 1
    assert math.isnan(reached.recent_gain)


@pytest.mark.parametrize("slope", [-2.0, -0.05, 0.0, 0.3, 4.0])
def test_a_geometric_profile_has_its_slope(slope: float) -> None:
    norms = 10.0 ** (slope * np.arange(7) - 3)
    assert decay_per_layer(np.stack([norms, 1 / norms])) == pytest.approx([slope, -slope])


def test_decay_of_layers_with_gaps_is_per_layer() -> None:
    # Layers 1, 3 and 6 have a gradient: 1e-5, 1e-3 and 1.
    norms = np.array([[1e-5, 0.0, 1e-3, math.inf, NAN, 1.0]])
    assert decay_per_layer(norms) == pytest.approx([1.0])


@pytest.mark.parametrize("norms", [[0.0, 0.0, 0.0], [1.0, 0.0, NAN], [math.inf, -1.0, 1.0], [1.0]])
def test_fewer_than_two_norms_have_no_decay(norms: list[float]) -> None:
    assert np.isnan(decay_per_layer(np.array([norms]))).all()


def test_where_the_gradient_falls_and_rises() -> None:
    # In decades from the input: back from the fifth layer it falls by 3 to the first; zeros are
    # passed over.
    norms = 10.0 ** np.array([[0.0, 0.5, 1, 2, 3, -1], [3.0, 2, 1, 0, -1, -2]])
    norms[1, 2] = 0
    depth = over_depth(norms)
    assert depth.drop == pytest.approx([3, 0])
    assert (depth.drop_from[0], depth.drop_to[0]) == (4, 0)
    assert depth.rise == pytest.approx([4, 5])
    assert (depth.rise_from.tolist(), depth.rise_to.tolist()) == ([5, 5], [4, 0])
    assert depth.zero_layers.tolist() == [0, 1]


def test_a_dip_on_the_way_is_neither_a_fall_nor_a_rise() -> None:
    """Queries and keys get little, but what lies nearer the input does not."""
    norms = 10.0 ** np.array([[0.0, -4, -4, -1, -4, -4, -1, 0], [-2.0, -6, -3, -6, -1, -9, -1, 0]])
    depth = over_depth(norms)
    assert depth.drop == pytest.approx([0, 2])
    assert depth.rise == pytest.approx([0, 0])
    # The first layers lie at the value to which the dip is filled: there the fall has ended.
    assert (depth.drop_from[1], depth.drop_to[1]) == (7, 0)


def test_layers_without_a_gradient_are_counted() -> None:
    depth = over_depth(np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [NAN, 0, 1]]))
    assert depth.zero_layers.tolist() == [2, 0, 3, 1]
    assert depth.drop == pytest.approx([0, 0, NAN, NAN], nan_ok=True)


def test_no_layer_has_no_fall() -> None:
    depth = over_depth(np.empty((2, 0)))
    assert np.isnan(depth.drop).all()
    assert depth.zero_layers.tolist() == [0, 0]
