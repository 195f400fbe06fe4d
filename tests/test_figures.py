"""Gradients, steps and epochs: every figure of whole runs against a slow float64 training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradexp.optim import OPTIMIZERS, MakeOptimizer
from gradexp.records import RunDir
from tests.reference import CASES, MLP, Reference, config_of, forward, losses, run_of

PER_LAYER = ["grad_norm", "clipped_grad_norm", "bias_grad_norm", "weight_norm", "update_norm"]
PER_STEP = ["loss", "accuracy", "lr", "grad_norm", "clip_coefficient"]


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunDir, Reference]:
    folder = tmp_path_factory.mktemp("case")
    overrides = CASES[request.param]
    return run_of(folder, *overrides), Reference(config_of(folder, *overrides))


def close(measured: np.ndarray, expected: np.ndarray, rtol: float) -> None:
    np.testing.assert_allclose(measured, expected, rtol=rtol, atol=1e-7)


def test_gradients_of_every_layer_and_step(case: tuple[RunDir, Reference]) -> None:
    run, reference = case
    table = run.read("gradients")
    layers = len(reference.layers)
    measured = table[PER_LAYER].to_numpy().reshape(-1, layers, len(PER_LAYER))
    expected = np.array([[astuple(one) for one in step.layers] for step in reference.steps])
    close(measured[0], expected[0], rtol=1e-4)
    close(measured, expected, rtol=2e-3)
    assert table["step"].tolist() == np.repeat(np.arange(6), layers).tolist()
    assert table["layer_index"].tolist() == list(range(1, layers + 1)) * 6


def test_totals_of_every_step(case: tuple[RunDir, Reference]) -> None:
    run, reference = case
    measured = run.read("steps")[PER_STEP].to_numpy()
    expected = np.array([[getattr(step, name) for name in PER_STEP] for step in reference.steps])
    close(measured[0], expected[0], rtol=1e-5)
    close(measured, expected, rtol=1e-3)


def test_epochs(case: tuple[RunDir, Reference]) -> None:
    run, reference = case
    table = run.read("epochs")
    assert table[["epoch", "step"]].to_numpy().tolist() == [[1, 5], [2, 6]]
    for row, steps in zip(
        table.itertuples(), (reference.steps[:5], reference.steps[5:]), strict=True
    ):
        expected = (
            np.mean([step.loss for step in steps]),
            np.mean([step.accuracy for step in steps]),
            *reference.test(row.step),
        )
        measured = (row.train_loss, row.train_accuracy, row.test_loss, row.test_accuracy)
        close(np.array(measured), np.array(expected), rtol=1e-3)


def test_bias_column_is_empty_exactly_where_there_is_no_bias(tmp_path: Path) -> None:
    run = run_of(tmp_path, *CASES["cnn batch norm residual"], "train.steps=1")
    cells = [line.split(",")[5] for line in (run.path / "gradients.csv").read_text().splitlines()]
    assert [cell == "" for cell in cells[1:]] == [True] * 3 + [False]


@pytest.mark.parametrize("every", [1, 10])
def test_without_steps_there_is_one_observation_and_no_update(tmp_path: Path, every: int) -> None:
    run = run_of(tmp_path, "train.steps=0", f"probe.gradients_every={every}")
    reference = Reference(config_of(tmp_path, "train.steps=1"))
    table = run.read("gradients")
    assert table["step"].tolist() == [0] * len(reference.layers)
    expected = [one.grad_norm for one in reference.steps[0].layers]
    close(table["grad_norm"].to_numpy(), np.array(expected), rtol=1e-4)
    lines = (run.path / "gradients.csv").read_text().splitlines()[1:]
    assert all(line.endswith(",") for line in lines)
    assert len(run.read("steps")) == 1
    assert len(run.read("epochs")) == 0


def test_gradients_can_be_thinned(tmp_path: Path) -> None:
    thin = run_of(tmp_path, "probe.gradients_every=3", "train.steps=130").read("gradients")
    full = run_of(tmp_path, "probe.gradients_every=1", "train.steps=130").read("gradients")
    expected = full[full["step"] % 3 == 0].reset_index(drop=True)
    assert thin.equals(expected)


def test_a_vanishing_gradient_is_measured_not_lost(tmp_path: Path) -> None:
    """Entries near 1e-25: their squares are 0 in float32."""
    net = (
        "model={family: mlp, depth: 30, width: 16, activation: sigmoid}",
        "model.init={name: normal, std: 0.1}",
        "train.steps=1",
    )
    first = run_of(tmp_path, *net).read("gradients").query("layer_index == 1").iloc[0]
    reference = Reference(config_of(tmp_path, *net))
    expected = reference.steps[0].layers[0].grad_norm
    assert 1e-32 < expected < 1e-20
    assert first["grad_norm"] == pytest.approx(expected, rel=1e-3)
    assert first["bias_grad_norm"] == pytest.approx(
        reference.steps[0].layers[0].bias_grad_norm, rel=1e-3
    )


def test_a_thousand_layers(tmp_path: Path) -> None:
    net = (
        "model={family: mlp, depth: 1000, width: 32, init: {name: normal, std: 0.25}}",
        "train.steps=2",
        "train.optimizer={name: sgd, lr: 1e-6}",
    )
    run = run_of(tmp_path, *net)
    assert run.status() == "finished"
    table = run.read("gradients")
    assert table["layer_index"].tolist() == list(range(1, 1002)) * 2
    reference = Reference(config_of(tmp_path, *net, "train.steps=0"))
    inputs, targets = reference.batches.batch(0)
    _, logits = forward(reference.network, inputs.double())
    weights = [layer.weight for layer in reference.layers]
    gradients = torch.autograd.grad(losses(logits, targets).mean(), weights)
    expected = [float(torch.sqrt((one**2).sum())) for one in gradients]
    assert table["grad_norm"][:1001].tolist() == pytest.approx(expected, rel=2e-2)


def test_l1_does_not_count_as_clipping(tmp_path: Path) -> None:
    """Where nothing is clipped the coefficient is 1, whatever L1 adds."""
    run = run_of(tmp_path, *CASES["mlp rmsprop l1"])
    assert run.read("steps")["clip_coefficient"].tolist() == [1.0] * 6
    table = run.read("gradients")
    assert not math.isclose(table["clipped_grad_norm"][0], table["grad_norm"][0], rel_tol=1e-3)


@pytest.fixture
def per_tensor() -> Iterator[None]:
    """An SGD that is not declared elementwise: it must be given the net's own tensors."""

    @OPTIMIZERS.register("per_tensor")
    def _per_tensor() -> MakeOptimizer:
        def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            shapes = [tuple(one.shape) for group in groups for one in group["params"]]
            assert (7, 72) in shapes
            assert (7,) in shapes
            return torch.optim.SGD(groups, lr=0.1, momentum=0.9, foreach=False)

        return make

    yield
    OPTIMIZERS.remove("per_tensor")


@pytest.mark.usefixtures("per_tensor")
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_tensors_laid_side_by_side_train_as_they_do_apart(tmp_path: Path, decay: float) -> None:
    settings = (*MLP, "model.norm=batch", f"train.weight_decay={decay}")
    together = "train.optimizer={name: sgd, lr: 0.1, momentum: 0.9}"
    one = run_of(tmp_path, *settings, together).read("gradients")
    other = run_of(tmp_path, *settings, "train.optimizer=per_tensor").read("gradients")
    close(one[PER_LAYER].to_numpy(), other[PER_LAYER].to_numpy(), rtol=1e-5)
