"""When a run looks, where it computes, and in which portions it works."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradexp.config import load_config
from gradexp.errors import ConfigError
from gradexp.probes import Prober, ProbeRows
from gradexp.records import RunDir
from gradexp.train import Observer, Progress, execute
from gradexp.train.device import make_repeatable, pick
from gradexp.train.learner import Learner
from gradexp.train.plan import timetable
from tests.clocks import Clock
from tests.nets import config_of, run_of

NET = ("model={family: mlp, depth: 1, width: 3}", "data.batch_size=8")  # 40 examples: 5 an epoch


# --- the cadence of probes -----------------------------------------------------------------------


def probed(run: RunDir) -> list[int]:
    return sorted(set(run.read("units")["step"]))


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        # 5 % of 20 x 8 examples pay for less than one probe of 12: three are made all the same.
        (["probe={every: auto, examples: 12}", "train={steps: 20}"], [0, 10, 20]),
        # 5 % of 30 x 8 examples pay for six probes of 2.
        (["probe={every: auto, examples: 2}", "train={steps: 30}"], [0, 6, 12, 18, 24, 30]),
        # More than the 40 examples there are cannot be looked at: 5 % of 100 x 8 pay for none.
        (["probe={every: auto, examples: 1000}", "train={epochs: 20}"], [0, 50, 100]),
        # A batch is no larger than the set: 5 % of 80 x 40 examples pay for four probes of 40.
        (
            ["probe={every: auto, examples: all}", "train={steps: 80}", "data.batch_size=999"],
            [0, 27, 53, 80],
        ),
        (["probe={every: epoch, examples: 4}", "train={epochs: 3}"], [0, 5, 10, 15]),
        (["probe={every: epoch, examples: 4}", "train={steps: 7}"], [0, 5, 7]),
        (["probe={every: 3, examples: 4}", "train={steps: 7}"], [0, 3, 6, 7]),
    ],
)
def test_a_run_looks_when_it_should(tmp_path: Path, settings: list[str], steps: list[int]) -> None:
    run = run_of(tmp_path, *NET, *settings)
    assert probed(run) == steps
    assert sorted(set(run.read("signal")["step"])) == steps


def test_unless_told_otherwise_a_run_looks_at_1024_examples_three_times_and_more(
    tmp_path: Path,
) -> None:
    """Three epochs of 250 steps of 128: 5 % are 4,800 examples, four probes."""
    path = tmp_path / "plain.yaml"
    path.write_text("name: plain\ndata: {dataset: synthetic}\nmodel: {family: mlp}\n")
    config = load_config(path)
    times = timetable(config, 250, config.data.batch_size, int(config.probe.examples))
    assert (times.total, times.per_epoch) == (750, 250)
    assert times.probes == [0, 250, 500, 750]


@pytest.mark.parametrize(
    ("settings", "together"),
    [
        (["model.norm=none"], 2**23 // 6),  # six units: as many as fit in memory
        (["model.norm=layer"], 2**23 // 6),
        (["model.norm=batch"], 8),  # examples depend on one another: as in training
        (["model={family: cnn, depth: 3, width: 2}"], 8),
    ],
)
def test_so_many_examples_are_looked_at_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], together: int
) -> None:
    seen, look = [], Prober.look

    def noted(prober: Prober, step: int) -> ProbeRows:
        seen.append(prober.examples.batch_size)
        return look(prober, step)

    monkeypatch.setattr(Prober, "look", noted)
    run_of(tmp_path, *NET, *settings, "train={steps: 0}")
    assert seen == [together]


def test_epochs_end_where_the_data_do(tmp_path: Path) -> None:
    run = run_of(tmp_path, *NET, "train={epochs: 3}")
    assert run.read("steps")["epoch"].tolist() == [1] * 5 + [2] * 5 + [3] * 5
    assert run.read("epochs")[["epoch", "step"]].to_numpy().tolist() == [[1, 5], [2, 10], [3, 15]]
    cut = run_of(tmp_path, *NET, "train={steps: 7}")
    assert cut.read("epochs")[["epoch", "step"]].to_numpy().tolist() == [[1, 5], [2, 7]]
    steps, epochs = cut.read("steps"), cut.read("epochs")
    means = [steps["loss"][:5].mean(), steps["loss"][5:].mean()]
    assert epochs["train_loss"].tolist() == pytest.approx(means, rel=1e-6)
    right = [steps["accuracy"][:5].mean(), steps["accuracy"][5:].mean()]
    assert epochs["train_accuracy"].tolist() == pytest.approx(right, rel=1e-6)


# --- portions ------------------------------------------------------------------------------------


class Portions(Observer):
    """Where each portion of steps ended, and what was told there."""

    def __init__(self) -> None:
        self.told: list[Progress] = []

    def progressed(self, progress: Progress) -> None:
        self.told.append(progress)

    @property
    def steps(self) -> list[int]:
        return [one.step for one in self.told]


def slowed(monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: float) -> None:
    step = Learner.step

    def slow(learner: Learner, *arguments: Any) -> None:
        step(learner, *arguments)
        clock.now += seconds

    monkeypatch.setattr(Learner, "step", slow)


def test_quick_steps_are_told_256_at_a_time(tmp_path: Path, clock: Clock) -> None:
    portions = Portions()
    config = config_of(*NET, "train.steps=600", "probe.every=300")
    run = execute(config, tmp_path, observer=portions).run
    assert clock.now == Clock.now
    assert portions.steps == [256, 300, 556, 600]  # a probe ends one too
    assert run.read("steps")["step"].tolist() == list(range(600))


@pytest.mark.parametrize(
    ("seconds", "ends"), [(0.125, [4, 8, 12]), (0.25, [2, 4, 6, 8, 10, 12]), (9.0, range(1, 13))]
)
def test_slow_steps_are_told_twice_a_second(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, seconds: float, ends: Any
) -> None:
    slowed(monkeypatch, clock, seconds)
    portions = Portions()
    config = config_of(*NET, "train.steps=12", "probe.every=12")
    run = execute(config, tmp_path, observer=portions).run
    assert portions.steps == list(ends)
    assert run.read("steps")["step_seconds"].tolist() == pytest.approx([seconds] * 12)


def test_a_step_that_is_only_looked_at_takes_its_time_too(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Learner.observe_only

    def slow(learner: Learner) -> None:
        look(learner)
        clock.now += 3.0

    clock.now += 100.0
    monkeypatch.setattr(Learner, "observe_only", slow)
    run = run_of(tmp_path, *NET, "train={steps: 0}")
    assert run.read("steps")["step_seconds"].tolist() == [3.0]


def test_what_is_told_is_the_newest_step(tmp_path: Path) -> None:
    portions = Portions()
    config = config_of(
        *NET, "train.steps=9", "probe.every=4", "train.clip={name: norm, max_norm: 1e-3}"
    )
    run = execute(config, tmp_path, observer=portions).run
    assert portions.steps == [4, 8, 9]
    steps, gradients = run.read("steps"), run.read("gradients")
    for one in portions.told:
        row = steps.iloc[one.step - 1]
        assert (one.loss, one.accuracy) == pytest.approx((row["loss"], row["accuracy"]), rel=1e-8)
        norms = gradients[gradients["step"] == one.step - 1]["grad_norm"]
        assert one.grad_norms.tolist() == pytest.approx(norms.tolist(), rel=1e-8)


# --- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("examples", [40, 2600])
def test_the_test_set_is_looked_at_as_a_whole_and_as_at_evaluation(examples: int) -> None:
    """Without dropout, with running statistics; figures are means over examples, not over parts."""
    settings = (*NET, f"data.examples={examples}", "model.norm=batch", "model.dropout=0.5")
    learner = Learner(config_of(*settings), torch.device("cpu"))
    for step in range(3):
        learner.step(step, 3)
    loss, accuracy = learner.evaluate()
    assert learner.network.training
    targets = learner.data.test_targets
    one_by_one = in_double(learner)
    assert loss == pytest.approx(float(F.cross_entropy(one_by_one, targets)), rel=1e-5)
    assert accuracy == pytest.approx(float((one_by_one.argmax(1) == targets).double().mean()))


def in_double(learner: Learner) -> torch.Tensor:
    """Logits of the test set, by a plain chain of linear map, batch norm and ReLU in float64."""
    x = learner.data.test_inputs.double().flatten(1)
    maps = [one for one in learner.network.modules() if isinstance(one, nn.Linear)]
    (norm,) = (one for one in learner.network.modules() if isinstance(one, nn.BatchNorm1d))
    weight, bias, mean, variance = (
        one.detach().double() if one is not None else torch.zeros(())
        for one in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    first, last = ((one.weight.detach().double(), one.bias) for one in maps)
    x = x @ first[0].T + (0.0 if first[1] is None else first[1].detach().double())
    x = (x - mean) / torch.sqrt(variance + norm.eps) * weight + bias
    return x.clamp(min=0) @ last[0].T + last[1].detach().double()


def test_the_rate_of_a_step_is_that_of_the_schedule(tmp_path: Path) -> None:
    """Half a cosine over the whole run, from the optimizer's own rate."""
    settings = (
        "train={steps: 8, optimizer: {name: sgd, lr: 0.2}, schedule: cosine}",
        "probe.every=3",
    )
    run = run_of(tmp_path, *NET, *settings)
    expected = [0.2 * (1 + np.cos(np.pi * step / 8)) / 2 for step in range(8)]
    assert run.read("steps")["lr"].tolist() == pytest.approx(expected, rel=1e-6)


# --- devices -------------------------------------------------------------------------------------


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Any:
    def choose(*devices: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in devices)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in devices)

    return choose


@pytest.mark.parametrize(
    ("devices", "name", "picked"),
    [
        ((), "auto", "cpu"),
        (("mps",), "auto", "mps"),
        (("cuda", "mps"), "auto", "cuda"),
        (("cuda",), "auto", "cuda"),
        (("cuda", "mps"), "cpu", "cpu"),
        (("cuda", "mps"), "mps", "mps"),
        (("cuda",), "cuda", "cuda"),
    ],
)
def test_the_fastest_device_is_used_unless_one_is_named(
    there: Any, devices: tuple[str, ...], name: str, picked: str
) -> None:
    there(*devices)
    assert pick(name) == torch.device(picked)


@pytest.mark.parametrize(
    ("devices", "name", "usable"),
    [
        ((), "cuda", "auto, cpu"),
        (("mps",), "cuda", "auto, mps, cpu"),
        (("cuda",), "mps", "auto, cuda, cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    there: Any, devices: tuple[str, ...], name: str, usable: str
) -> None:
    there(*devices)
    with pytest.raises(ConfigError) as error:
        pick(name)
    assert str(error.value) == f"device: {name} is not available here; usable: {usable}"


def switches() -> dict[str, Any]:
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "benchmark": torch.backends.cudnn.benchmark,
        "convolutions": torch.backends.cudnn.allow_tf32,
        "products": torch.backends.cuda.matmul.allow_tf32,
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


@pytest.fixture
def fast_switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Everything at its quickest; put back afterwards."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    products = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True  # cannot be patched: it is no plain attribute
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "to be put back")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield switches()
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.use_deterministic_algorithms(deterministic)


def test_on_cuda_everything_that_varies_is_switched_off(fast_switches: dict[str, Any]) -> None:
    make_repeatable(torch.device("cuda"))
    assert switches() == {
        "deterministic": True,
        "fill": False,
        "benchmark": False,
        "convolutions": False,
        "products": False,
        "workspace": ":4096:8",
    }
    assert switches() != fast_switches


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_elsewhere_nothing_has_to_be(fast_switches: dict[str, Any], device: str) -> None:
    make_repeatable(torch.device(device))
    assert switches() == fast_switches
