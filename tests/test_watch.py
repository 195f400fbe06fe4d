"""`gradexp.watch`: anybody's module in anybody's loop, measured as it is and left as it is."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradexp.analysis import judge
from gradexp.errors import ConfigError, RunError
from gradexp.probes.nonfinite import NonFiniteError
from gradexp.records import RunDir, TableWriter
from gradexp.report import make_report
from gradexp.sweeps import status
from gradexp.watching import watch
from gradexp.watching.watching import Settings

INPUTS, CLASSES = 6, 3


def batches(count: int, size: int = 8, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, INPUTS, generator=generator),
            torch.randint(0, CLASSES, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def a_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(INPUTS, 5), nn.ReLU(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, CLASSES)
    )


def norm64(tensor: Tensor | None) -> float:
    return 0.0 if tensor is None else float(tensor.detach().double().norm())


@dataclass
class Reference:
    """The same figures by plain means, in float64: told of every stage of a step."""

    weights: list[Tensor]
    rows: list[dict[str, list[float]]] = field(default_factory=list)

    def before_clipping(self, scale: float = 1.0) -> None:
        self._raw = [norm64(one.grad) / scale for one in self.weights]

    def before_update(self) -> None:
        self._clipped = [norm64(one.grad) for one in self.weights]
        self._before = [one.detach().clone().double() for one in self.weights]

    def after_update(self) -> None:
        self.rows.append(
            {
                "grad_norm": self._raw,
                "clipped_grad_norm": self._clipped,
                "weight_norm": [norm64(one) for one in self._before],
                "update_norm": [
                    norm64(one.detach().double() - before)
                    for one, before in zip(self.weights, self._before, strict=True)
                ],
            }
        )

    def check(self, run: RunDir, rel: float = 1e-5) -> None:
        frame = run.read("gradients")
        layers = len(self.weights)
        assert len(frame) == layers * len(self.rows)
        for step, row in enumerate(self.rows):
            seen = frame[frame["step"] == step]
            assert list(seen["layer_index"]) == list(range(1, layers + 1))
            for column, expected in row.items():
                assert list(seen[column]) == pytest.approx(expected, rel=rel, abs=1e-30), column


def linear_weights(net: nn.Module) -> list[Tensor]:
    return [one.weight for one in net.modules() if isinstance(one, nn.Linear)]


Clip = Callable[[nn.Module], Any]


def train(
    net: nn.Module,
    out: Path,
    *,
    steps: int = 6,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    clip: Clip | None = None,
    accumulate: int = 1,
    weights: list[Tensor] | None = None,
    called: nn.Module | None = None,
    **settings: Any,
) -> tuple[RunDir, Reference]:
    """A loop as anybody would write it, watched, and measured by plain means as well."""
    reference = Reference(linear_weights(net) if weights is None else weights)
    trained = [one for one in net.parameters() if one.requires_grad]
    stepper = optimizer(trained, lr=0.1)
    kind = next(net.parameters()).dtype
    with watch(called or net, stepper, out=out, **settings) as watched:
        for inputs, targets in batches(steps):
            parts = zip(inputs.chunk(accumulate), targets.chunk(accumulate), strict=True)
            for index, (part, labels) in enumerate(parts, start=1):
                loss = F.cross_entropy((called or net)(part.to(kind)).float(), labels) / accumulate
                loss.backward()
                if index < accumulate:
                    watched.step(loss)
            reference.before_clipping()
            if clip:
                clip(net)
            reference.before_update()
            stepper.step()
            reference.after_update()
            stepper.zero_grad()
            watched.step(loss)
    return watched.run, reference


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_steps_are_those_of_the_loop(tmp_path: Path, optimizer: Any) -> None:
    run, reference = train(a_net(), tmp_path / "run", optimizer=optimizer)
    reference.check(run)
    steps = run.read("steps")
    assert list(steps["step"]) == list(range(6))
    assert set(steps["lr"]) == {0.1}
    assert steps["accuracy"].isna().all()


def test_training_is_the_same_to_the_bit(tmp_path: Path) -> None:
    def trained(*, watched: bool) -> dict[str, Tensor]:
        net = nn.Sequential(a_net(), nn.BatchNorm1d(CLASSES), nn.Dropout(0.3))
        stepper = torch.optim.Adam(net.parameters(), lr=0.01)
        torch.manual_seed(7)
        probe = batches(1, 16, seed=3)[0]
        look = (
            watch(net, stepper, probe=probe, loss=F.cross_entropy, out=tmp_path / "run", every=2)
            if watched
            else None
        )
        for inputs, targets in batches(8):
            loss = F.cross_entropy(net(inputs), targets)
            loss.backward()
            stepper.step()
            stepper.zero_grad()
            if look:
                look.step(loss)
        if look:
            look.close()
            assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
        return {**net.state_dict(), "random": torch.get_rng_state()}

    bare, seen = trained(watched=False), trained(watched=True)
    assert all(torch.equal(bare[name], seen[name]) for name in bare)
    assert sorted(RunDir(tmp_path / "run").read("signal")["step"].unique()) == [0, 2, 4, 6, 8]


def test_what_clipping_did_is_seen(tmp_path: Path) -> None:
    run, reference = train(
        a_net(), tmp_path / "run", clip=lambda net: nn.utils.clip_grad_norm_(net.parameters(), 0.05)
    )
    reference.check(run)
    steps = run.read("steps")
    assert (steps["clip_coefficient"] < 1).all()
    total = steps["grad_norm"] * steps["clip_coefficient"]
    assert list(total) == pytest.approx([0.05] * 6, rel=1e-4)


@pytest.mark.parametrize("count", [2, 4])
def test_accumulated_gradients_are_one_step(tmp_path: Path, count: int) -> None:
    run, reference = train(a_net(), tmp_path / "run", accumulate=count)
    reference.check(run)
    assert len(run.read("steps")) == 6


def test_a_frozen_layer_has_no_gradient_and_stays(tmp_path: Path) -> None:
    net = a_net()
    net[2].requires_grad_(requires_grad=False)
    before = net[2].weight.clone()
    run, _ = train(net, tmp_path / "run")
    frozen = run.read("gradients").query("layer_index == 2")
    assert frozen["grad_norm"].isna().all()
    assert list(frozen["update_norm"]) == [0.0] * 6
    assert torch.equal(net[2].weight, before)
    others = run.read("gradients").query("layer_index != 2")
    assert (others["grad_norm"] > 0).all()


class Tied(nn.Module):
    """Two layers that share a weight, which is one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, 5)
        self.inner = nn.Linear(5, 5)
        self.twin = nn.Linear(5, 5)
        self.twin.weight = self.inner.weight
        self.last = nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.inner(F.relu(self.first(inputs))))
        return self.last(F.relu(self.twin(hidden)))


def test_a_shared_weight_is_one_layer_and_counted_once(tmp_path: Path) -> None:
    net = Tied()
    weights: list[Tensor] = [net.first.weight, net.inner.weight, net.last.weight]
    run, reference = train(net, tmp_path / "run", weights=weights)
    reference.check(run)
    parameters = [one.grad for one in net.parameters()]
    assert len(parameters) == 7
    total = run.read("steps")["grad_norm"].iloc[0]
    per_layer = run.read("gradients").query("step == 0")
    squares = (per_layer["grad_norm"] ** 2).sum() + (per_layer["bias_grad_norm"] ** 2).sum()
    # The twin's bias belongs to no listed layer, but to the whole.
    assert total**2 >= squares * (1 - 1e-9)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_parameters_stay_of_their_type(tmp_path: Path, kind: torch.dtype) -> None:
    net = a_net().to(kind)
    run, reference = train(net, tmp_path / "run")
    reference.check(run, rel=1e-5)
    assert {one.dtype for one in net.parameters()} == {kind}


def test_weight_norm_is_measured_by_its_direction(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(INPUTS, 5)),
        nn.ReLU(),
        nn.Linear(5, CLASSES),
    )
    run, _ = train(net, tmp_path / "run", weights=[])
    assert list(run.read("layers")["layer"]) == ["0", "2"]
    assert (run.read("gradients")["grad_norm"] > 0).all()


def test_figures_under_a_scaler_are_unscaled(tmp_path: Path) -> None:
    """With `unscale_` before clipping, and without."""
    for unscaled in (True, False):
        net = a_net()
        reference = Reference(linear_weights(net))
        stepper = torch.optim.SGD(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        out = tmp_path / str(unscaled)
        with watch(net, stepper, out=out, scaler=scaler) as watched:
            for inputs, targets in batches(6):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = F.cross_entropy(net(inputs), targets)
                scaler.scale(loss).backward()
                reference.before_clipping(scaler.get_scale())
                if unscaled:
                    scaler.unscale_(stepper)
                    nn.utils.clip_grad_norm_(net.parameters(), 0.2)
                before = [one.detach().clone() for one in linear_weights(net)]
                scaler.step(stepper)
                scaler.update()
                stepper.zero_grad()
                watched.step(loss)
                reference._clipped = [
                    norm64(one - old) / 0.1
                    for one, old in zip(linear_weights(net), before, strict=True)
                ]
                reference._before = [one.double() for one in before]
                reference.after_update()
        frame = watched.run.read("gradients")
        expected = [one for row in reference.rows for one in row["grad_norm"]]
        assert list(frame["grad_norm"]) == pytest.approx(expected, rel=1e-5)
        got = [one for row in reference.rows for one in row["clipped_grad_norm"]]
        assert list(frame["clipped_grad_norm"]) == pytest.approx(got, rel=1e-3)
        if not unscaled:
            assert list(frame["clipped_grad_norm"]) == pytest.approx(expected, rel=1e-5)


def test_several_optimizers_make_one_step(tmp_path: Path) -> None:
    net = a_net()
    steppers = [
        torch.optim.SGD(net[0].parameters(), lr=0.1),
        torch.optim.Adam([*net[2].parameters(), *net[4].parameters()], lr=0.01),
    ]
    reference = Reference(linear_weights(net))
    with watch(net, steppers, out=tmp_path / "run") as watched:
        for inputs, targets in batches(4):
            loss = F.cross_entropy(net(inputs), targets)
            loss.backward()
            reference.before_clipping()
            reference.before_update()
            for one in steppers:
                one.step()
            for one in steppers:
                one.zero_grad()
            reference.after_update()
            watched.step(loss)
    reference.check(watched.run)


def test_without_an_optimizer_updates_are_seen_all_the_same(tmp_path: Path) -> None:
    net = a_net()
    stepper = torch.optim.SGD(net.parameters(), lr=0.1)
    reference = Reference(linear_weights(net))
    with watch(net, out=tmp_path / "run") as watched:
        for inputs, targets in batches(4):
            loss = F.cross_entropy(net(inputs), targets)
            loss.backward()
            reference.before_clipping()
            reference.before_update()
            stepper.step()
            reference.after_update()
            stepper.zero_grad()
            watched.step(loss)
    reference.check(watched.run)
    assert watched.run.read("steps")["lr"].isna().all()


def test_a_compiled_model_is_watched(tmp_path: Path) -> None:
    net = a_net()
    compiled = torch.compile(net, backend="eager")
    run, reference = train(net, tmp_path / "run", called=compiled, **probing())
    reference.check(run)
    assert list(run.read("layers")["layer"]) == ["0", "2", "4"]
    plain, _ = train(a_net(), tmp_path / "plain", **probing())
    pd.testing.assert_frame_equal(run.read("signal"), plain.read("signal"))


@pytest.mark.usefixtures("process_group")
def test_a_net_spread_over_processes_is_watched_on_one(tmp_path: Path) -> None:
    net = a_net()
    spread = nn.parallel.DistributedDataParallel(net)
    run, reference = train(net, tmp_path / "run", called=spread, **probing())
    reference.check(run)
    assert list(run.read("layers")["layer"]) == ["0", "2", "4"]


def probing(**more: Any) -> dict[str, Any]:
    return {"probe": batches(1, 16, seed=5)[0], "loss": F.cross_entropy, **more}


# --- what it becomes ---------------------------------------------------------------------------


def test_it_becomes_a_run_directory_like_any(tmp_path: Path) -> None:
    run, _ = train(a_net(), tmp_path / "mine", **probing())
    tables = {path.name for path in run.path.glob("*.csv")}
    assert {"layers.csv", "gradients.csv", "signal.csv", "units.csv", "steps.csv"} <= tables
    layers = run.read("layers")
    assert list(layers["activation"]) == ["relu", "tanh", "none"]
    assert list(layers["units"]) == [5, 5, 3]
    manifest, summary = run.read_manifest(), run.read_summary()
    assert manifest["status"] == "finished"
    assert manifest["outcome"] == "watched 6 steps"
    assert manifest["loss"] == {"reduction": "mean"}
    assert summary["steps"] == 6
    assert summary["probe_examples"] == 16
    assert [one["name"] for one in summary["verdicts"]] == [one.name for one in judge(run)]
    answer = make_report([run.path], format="json", html=tmp_path / "page.html")
    assert list(json.loads(str(answer.output))["runs"]) != []
    assert "mine" in (tmp_path / "page.html").read_text()
    (row,) = status(run.path).rows
    assert (row["run"], row["status"]) == ("mine", "finished")
    assert row["verdicts"].split() == [one["name"] for one in summary["verdicts"]]
    assert "watched: Sequential" in run.config.read_text()


def test_a_second_run_lies_beside_the_first(tmp_path: Path) -> None:
    names = [train(a_net(), tmp_path / "mine", steps=1)[0].name for _ in range(3)]
    assert names == ["mine", "mine-2", "mine-3"]


@pytest.mark.parametrize(("loss", "scale"), [("mean", 1.0), ("sum", 1.0)])
def test_a_loss_may_be_a_mean_or_a_sum(tmp_path: Path, loss: Any, scale: float) -> None:
    def function(outputs: Tensor, targets: Tensor) -> Tensor:
        return scale * F.cross_entropy(outputs, targets, reduction=loss)

    settings = probing(loss=function)
    run, _ = train(a_net(), tmp_path / loss, steps=1, **settings)
    plain, _ = train(a_net(), tmp_path / "plain", steps=1, **probing())
    assert run.read_manifest()["loss"] == {"reduction": loss}
    pd.testing.assert_frame_equal(run.read("signal"), plain.read("signal"), rtol=1e-5)


def test_probe_examples_go_through_the_net_in_batches_of_the_loop(tmp_path: Path) -> None:
    """More of them need not fit into memory."""
    net, seen = a_net(), []
    net.register_forward_pre_hook(lambda _net, args: seen.append(len(args[0])))
    run, _ = train(net, tmp_path / "run", probe=batches(1, 50, seed=5)[0], loss=F.cross_entropy)
    assert max(seen) == 8
    assert run.read_summary()["probe_examples"] == 50


def test_a_module_that_is_only_looked_at_needs_no_call(tmp_path: Path) -> None:
    """How it begins is seen without any step, and once: the look's own calls are not the loop's."""
    with watch(a_net(), out=tmp_path / "still", **probing()) as watched:
        pass
    trained, _ = train(a_net(), tmp_path / "trained", **probing())
    signal = trained.read("signal")
    pd.testing.assert_frame_equal(watched.run.read("signal"), signal[signal["step"] == 0])
    pd.testing.assert_frame_equal(watched.run.read("layers"), trained.read("layers"))
    assert len(watched.run.read("steps")) == 0
    assert watched.run.read_manifest()["outcome"].startswith("watched 0 steps")
    assert {path.name for path in watched.run.path.iterdir()} <= {
        path.name for path in trained.path.iterdir()
    }


def test_the_diagnosis_says_what_the_report_says(tmp_path: Path) -> None:
    net = a_net()
    stepper = torch.optim.SGD(net.parameters(), lr=0.1)
    with watch(net, stepper, out=tmp_path / "run", **probing()) as watched:
        for inputs, targets in batches(3):
            loss = F.cross_entropy(net(inputs), targets)
            loss.backward()
            stepper.step()
            stepper.zero_grad()
            watched.step(loss, net(inputs), targets)
    diagnosis = watched.diagnosis()
    assert diagnosis.names == [one["name"] for one in watched.run.read_summary()["verdicts"]]
    assert str(diagnosis).startswith(watched.run.read_summary()["reading"])
    accuracy = watched.run.read("steps")["accuracy"]
    assert accuracy.between(0, 1).all()


def test_callbacks_have_the_defaults_of_watch() -> None:
    keywords = inspect.signature(watch).parameters
    for setting in dataclasses.fields(Settings):
        assert setting.default == keywords[setting.name].default, setting.name


# --- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probe": batches(1)[0]}, "probe= needs loss="),
        ({"every": 0}, "every= must be 'auto' or at least 1, got 0"),
        ({"gradients_every": 0}, "gradients_every= must be at least 1, got 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        watch(a_net(), out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_module_that_is_never_called_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match="never called"),
        watch(a_net(), out=tmp_path / "run") as watched,
    ):
        watched.step(torch.tensor(1.0))


def raise_in_the_loop(out: Path, error: type[BaseException]) -> nn.Module:
    net = a_net()
    with pytest.raises(error), watch(net, out=out, **probing()):
        _call_and_raise(net, error)
    return net


def _call_and_raise(net: nn.Module, error: type[BaseException]) -> None:
    net(batches(1)[0][0])
    raise error


def test_an_error_of_the_loop_ends_the_run_on_record(tmp_path: Path) -> None:
    net = raise_in_the_loop(tmp_path / "run", ZeroDivisionError)
    manifest = RunDir(tmp_path / "run").read_manifest()
    assert (manifest["status"], manifest["error"]) == ("failed", "ZeroDivisionError: ")
    assert not any(part._forward_pre_hooks for part in net.modules())


def test_an_error_of_the_loop_is_not_hidden_by_one_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise RunError("No space left on device")

    net = a_net()

    def loop() -> None:
        stepper = torch.optim.SGD(net.parameters(), lr=0.1)
        with watch(net, stepper, out=tmp_path / "run", **probing()) as watched:
            inputs, targets = batches(1)[0]
            loss = F.cross_entropy(net(inputs), targets)
            loss.backward()
            stepper.step()
            watched.step(loss)
            monkeypatch.setattr(TableWriter, "append", full)
            monkeypatch.setattr(TableWriter, "append_text", full)
            for writes in ("write_manifest", "write_traceback"):
                monkeypatch.setattr(RunDir, writes, full)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert not any(part._forward_pre_hooks for part in net.modules())


def test_an_interrupt_ends_the_run_as_it_is(tmp_path: Path) -> None:
    raise_in_the_loop(tmp_path / "run", KeyboardInterrupt)
    assert RunDir(tmp_path / "run").read_manifest()["status"] == "finished"


def explode(net: nn.Sequential, where: str) -> None:
    with torch.no_grad():
        if where == "weight":
            net[2].weight[0, 0] = math.inf
        else:
            net[2].weight.fill_(1e30)
            net[4].weight.fill_(1e30)


@pytest.mark.parametrize("where", ["weight", "values"])
def test_the_first_value_that_is_not_finite_stops_the_loop(tmp_path: Path, where: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(INPUTS, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, CLASSES)
    )
    kept: dict[str, Tensor] = {}

    def loop() -> None:
        stepper = torch.optim.SGD(net.parameters(), lr=0.1)
        with watch(net, stepper, out=tmp_path / "run", stop_on_nonfinite=True) as watched:
            for step, (inputs, targets) in enumerate(batches(5)):
                if step == 2:
                    explode(net, where)
                    kept.update(copy.deepcopy(net.state_dict()))
                loss = F.cross_entropy(net(inputs), targets)
                loss.backward()
                stepper.step()
                stepper.zero_grad()
                watched.step(loss)

    with pytest.raises(NonFiniteError) as caught:
        loop()
    found = caught.value.found
    assert found.step == 2
    assert found.layer == {"weight": "2", "values": "4"}[where]
    assert all(torch.equal(kept[name], one) for name, one in net.state_dict().items())
    run = RunDir(tmp_path / "run")
    assert run.read_manifest()["outcome"].startswith("watched 2 steps; ")
    assert run.read_summary()["nonfinite"]["layer"] == found.layer


class Logarithm(nn.Module):
    """Its second layer takes a logarithm, which is not finite once a value is not above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(INPUTS, 5), nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.log(F.relu(self.first(inputs))))


@pytest.mark.parametrize(("stop", "operation"), [("replay", "torch.log"), (True, None)])
def test_a_replay_names_the_operation(tmp_path: Path, stop: Any, operation: str | None) -> None:
    net = Logarithm()

    def loop() -> None:
        stepper = torch.optim.SGD(net.parameters(), lr=0.1)
        with watch(net, stepper, out=tmp_path / "run", stop_on_nonfinite=stop) as watched:
            for inputs, targets in batches(2):
                loss = F.cross_entropy(net(inputs), targets)
                loss.backward()
                stepper.step()
                watched.step(loss)

    with pytest.raises(NonFiniteError) as caught:
        loop()
    found = caught.value.found
    assert (found.step, found.tensor, found.layer) == (0, "activation", "last")
    assert found.operation == operation
    said = f", made by {operation}" if operation else ", at step 0"
    assert said in str(caught.value)
    assert RunDir(tmp_path / "run").read_summary()["nonfinite"].get("operation") == operation
