"""Estimates of time: what a few cells cost is known here, so what all cost can be computed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gradexp.config import parse_yaml, resolve
from gradexp.errors import DataError, RunError
from gradexp.sweeps import Plan, plan_sweep, trial
from gradexp.sweeps.estimate import Cost, Estimate, estimate
from gradexp.train import EpochEnd, Observer, Progress, Start
from tests.clocks import Clock

BASE = """
name: tiny
device: cpu
data: {dataset: synthetic, classes: 3, channels: 2, size: 7, examples: 40, batch_size: 10}
model: {family: mlp, depth: 2, width: 4}
train: {steps: 100}
"""
EXAMPLES = 40


def plan_of(folder: Path, *grid: str, overrides: Sequence[str] = ()) -> Plan:
    (folder / "tiny.yaml").write_text(BASE)
    return plan_sweep(folder / "tiny.yaml", overrides, grid)


Law = Callable[[dict[str, Any]], tuple[float, float]]
"""From settings to the seconds of a start and of a step."""


def _per_epoch(content: dict[str, Any]) -> int:
    data = content["data"]
    return int((data["train_examples"] or EXAMPLES) // data["batch_size"])


@dataclass
class Machine:
    """Stands for the process that tries cells: it costs what the law says, and its own start."""

    clock: Clock
    law: Law = lambda _: (3.0, 0.0)
    starting: float = 7.0
    asked: list[list[dict[str, Any]]] = field(default_factory=list)
    commands: list[tuple[list[str], dict[str, Any]]] = field(default_factory=list)
    answer: dict[str, Any] | None = None
    error: Exception | None = None

    def __call__(self, command: list[str], **options: Any) -> None:
        folder = Path(command[3])
        contents = json.loads((folder / "cells.json").read_text())
        self.asked.append(contents)
        self.commands.append((command, options))
        if self.error:
            raise self.error
        costs = [Cost(*self.law(content), _per_epoch(content), 2.0) for content in contents]
        self.clock.now += self.starting + 2.0 * len(costs)
        answer = self.answer or {"costs": [asdict(cost) for cost in costs]}
        (folder / "costs.json").write_text(json.dumps(answer))


@pytest.fixture
def machine(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(clock)
    monkeypatch.setattr(subprocess, "run", machine)
    return machine


def estimated(
    plan: Plan, done: dict[int, float] | None = None, at_once: int = 1, threads: int = 1
) -> Estimate:
    """Of all cells that are not done; `done` says how long those took, by their place."""
    took = done or {}
    rows = [
        {**cell.row(), "status": "finished", "seconds": str(took[place])}
        if place in took
        else {**cell.row(), "status": "planned"}
        for place, cell in enumerate(plan.cells)
    ]
    left = {cell.run for place, cell in enumerate(plan.cells) if place not in took}
    return estimate(plan.cells, rows, left, at_once, threads)


# Multiplications of one forward pass, by hand: weights of each layer times the positions of its
# output. Images are 2 x 7 x 7. A pool halves 7 to 3 and 3 to 1, a stride of 2 halves 7 to 4.
WORK = {
    "mlp": {  # 98 w, then w w, then 3 w
        2: 98 * 2 + 2 * 2 + 3 * 2,
        3: 98 * 3 + 3 * 3 + 3 * 3,
        4: 98 * 4 + 4 * 4 + 3 * 4,
        9: 98 * 9 + 9 * 9 + 3 * 9,
    },
    "cnn": {  # 3 stages: 18 w on 49, 9 w 2w on 9, 9 2w 4w on 1, readout 4w 3
        2: 36 * 49 + 72 * 9 + 288 + 24,
        3: 54 * 49 + 162 * 9 + 648 + 36,
        4: 72 * 49 + 288 * 9 + 1152 + 48,
        9: 162 * 49 + 1458 * 9 + 5832 + 108,
    },
    "mobilenet_v1": {  # 18 w, 9 w, w 2w on 49; 9 2w, 2w 4w on 16; readout 4w 3
        2: (36 + 18 + 8) * 49 + (36 + 32) * 16 + 24,
        3: (54 + 27 + 18) * 49 + (54 + 72) * 16 + 36,
        4: (72 + 36 + 32) * 49 + (72 + 128) * 16 + 48,
        9: (162 + 81 + 162) * 49 + (162 + 648) * 16 + 108,
    },
}
DEPTH = {"mlp": [], "cnn": ["model.depth=3"], "mobilenet_v1": ["model.depth=2", "model.stages=2"]}
WIDTHS = (2, 3, 4, 9)


def by_work(content: dict[str, Any]) -> tuple[float, float]:
    """Two seconds to start, and a microsecond for each multiplication of a step."""
    model = content["model"]
    work = WORK[model["family"]][model["width"]]
    return 2.0, 1e-6 * work * content["data"]["batch_size"]


@pytest.mark.parametrize("family", list(WORK))
def test_the_work_of_a_cell_is_its_weights_at_all_their_positions(
    family: str, tmp_path: Path, machine: Machine
) -> None:
    """Three of four are tried; the fourth follows from its work alone."""
    machine.law = by_work
    overrides = [f"model.family={family}", *DEPTH[family]]
    plan = plan_of(tmp_path, f"model.width={','.join(map(str, WIDTHS))}", overrides=overrides)
    found = estimated(plan)
    assert [content["model"]["width"] for content in machine.asked[0]] == [2, 4, 9]
    each = [2.0 + 100 * 10 * 1e-6 * WORK[family][width] for width in WIDTHS]
    assert found.seconds == pytest.approx(7.0 + sum(each), rel=1e-6)
    assert found.basis == "the first steps of 3 cells, tried now"


def test_layers_and_their_work_cost_apart(tmp_path: Path, machine: Machine) -> None:
    """Both a start and a step cost something for each layer, and something for the work."""

    def law(content: dict[str, Any]) -> tuple[float, float]:
        depth, width = content["model"]["depth"], content["model"]["width"]
        layers, work = depth + 1, 98 * width + (depth - 1) * width**2 + 3 * width
        return 1.0 + 0.5 * layers + 1e-3 * work, 0.001 + 0.002 * layers + 1e-6 * work * 10

    machine.law = law
    rows = "[[2, 30], [3, 4], [4, 20], [5, 8], [9, 6]]"
    plan = plan_of(tmp_path, f"model.depth, model.width={rows[1:-1]}")
    expected = 0.0
    for depth, width in [(2, 30), (3, 4), (4, 20), (5, 8), (9, 6)]:
        start, step = law({"model": {"depth": depth, "width": width}})
        expected += start + 100 * step
    assert estimated(plan).seconds == pytest.approx(7.0 + expected, rel=1e-6)
    assert [content["model"]["depth"] for content in machine.asked[0]] == [2, 4, 9]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (["train.steps=null", "train.epochs=3"], {4: 30, 5: 24, 10: 12, 40: 3}),
        (["train.steps=null", "train.epochs=3", "data.train_examples=20"], {4: 15, 5: 12, 10: 6}),
        (["train.steps=null", "train.epochs=2", "data.train_examples=8"], {2: 8, 4: 4, 8: 2}),
        (["train.steps=50"], {4: 50, 5: 50, 10: 50, 40: 50}),
        (["train.steps=0"], {4: 0, 10: 0}),
    ],
)
def test_epochs_are_steps_by_the_size_of_a_batch(
    settings: list[str], steps: dict[int, int], tmp_path: Path, machine: Machine
) -> None:
    """A step costs 0.01 s for each example of its batch."""
    machine.law = lambda content: (3.0, 0.01 * content["data"]["batch_size"])
    plan = plan_of(tmp_path, f"data.batch_size={','.join(map(str, steps))}", overrides=settings)
    expected = sum(3.0 + count * 0.01 * batch for batch, count in steps.items())
    assert estimated(plan).seconds == pytest.approx(7.0 + expected, rel=1e-6)


@pytest.mark.parametrize(
    ("at_once", "seconds"),
    [(1, 10 + 20 + 30 + 40 + 100), (2, 100), (4, 100), (3, 100)],
)
def test_cells_at_work_together_share_the_time_but_none_is_split(
    at_once: int, seconds: float, tmp_path: Path
) -> None:
    """Each kind is done with one seed, and takes as long with the other."""
    plan = plan_of(tmp_path, "model.depth=1,2,3,4,5", "seed=0,1")
    took = dict(zip(range(0, 10, 2), [10.0, 20.0, 30.0, 40.0, 100.0], strict=True))
    found = estimated(plan, took, at_once)
    assert found == Estimate(pytest.approx(seconds), "5 cells that are done")


def test_equal_cells_take_their_share(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "model.depth=1,2", "seed=0,1,2,3")
    found = estimated(plan, {0: 10.0, 1: 30.0, 4: 40.0}, at_once=2)
    assert found.seconds == pytest.approx((2 * 20 + 3 * 40) / 2)  # the mean of 10 and 30
    assert found.basis == "3 cells that are done"


def test_one_cell_that_is_done_is_enough_for_its_seeds(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "model.depth=1", "seed=0,1,2")
    assert estimated(plan, {1: 8.0}) == Estimate(16.0, "the cell that is done")


def test_runs_that_failed_or_took_no_time_on_record_tell_nothing(
    tmp_path: Path, machine: Machine
) -> None:
    plan = plan_of(tmp_path, "model.depth=1", "seed=0,1,2")
    rows = [
        {"status": "failed", "seconds": "900"},
        {"status": "finished", "seconds": ""},
        {"status": "planned"},
    ]
    found = estimate(plan.cells, rows, {plan.cells[2].run}, 1, 1)
    assert found.seconds == pytest.approx(7.0 + 3.0)
    assert found.basis == "the cell that is done and the first steps of a cell, tried now"
    assert len(machine.asked[0]) == 1


def test_diverged_cells_are_done_too(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "model.depth=1", "seed=0,1")
    rows = [{"status": "diverged", "seconds": "5"}, {"status": "planned"}]
    assert estimate(plan.cells, rows, {plan.cells[1].run}, 1, 1).seconds == 5.0


def test_what_is_told_is_scaled_to_what_cells_took(tmp_path: Path, machine: Machine) -> None:
    """The trial tells 2 s and work; the two cells that are done took three times as long."""
    machine.law = by_work
    plan = plan_of(tmp_path, f"model.width={','.join(map(str, WIDTHS))}", "seed=0,1")
    told = [2.0 + 1e-3 * WORK["mlp"][width] for width in WIDTHS]
    took = {0: 3 * told[0] + 0.5, 4: 3 * told[2] - 0.5}
    found = estimated(plan, took)
    # The other seeds of what is done take what that took; the rest three times what is told.
    expected = sum(took.values()) + 3 * 2 * (told[1] + told[3])
    assert found.seconds == pytest.approx(7.0 + expected, rel=1e-6)
    assert found.basis == "2 cells that are done and the first steps of 2 cells, tried now"
    assert [content["model"]["width"] for content in machine.asked[0]] == [3, 9]


def test_cells_of_another_family_scale_nothing(tmp_path: Path, machine: Machine) -> None:
    machine.law = by_work
    plan = plan_of(tmp_path, "model.family=mlp,cnn", "model.depth=3", "model.width=4,9")
    done = {
        place: 5000.0 for place, cell in enumerate(plan.cells) if cell.axes["model.family"] == "mlp"
    }
    expected = sum(2.0 + 1e-3 * WORK["cnn"][width] for width in (4, 9))
    assert estimated(plan, done).seconds == pytest.approx(7.0 + expected, rel=1e-6)


def test_every_family_is_tried_and_has_costs_of_its_own(tmp_path: Path, machine: Machine) -> None:
    def law(content: dict[str, Any]) -> tuple[float, float]:
        start, step = by_work(content)
        return (start, step) if content["model"]["family"] == "cnn" else (5.0, 0.02)

    machine.law = law
    plan = plan_of(tmp_path, "model.family=mlp,cnn", "model.depth=3", "model.width=2,3,4,9")
    found = estimated(plan)
    families = [content["model"]["family"] for content in machine.asked[0]]
    assert families == ["mlp"] * 3 + ["cnn"] * 3
    convolutions = sum(2.0 + 1e-3 * WORK["cnn"][width] for width in WIDTHS)
    assert found.seconds == pytest.approx(7.0 + 4 * (5.0 + 100 * 0.02) + convolutions, rel=1e-6)
    assert found.basis == "the first steps of 6 cells, tried now"


def test_data_sets_are_tried_apart(tmp_path: Path, machine: Machine) -> None:
    machine.law = lambda content: (9.0 if content["data"]["dataset"] == "digits" else 2.0, 0.0)
    path = tmp_path / "tiny.yaml"
    path.write_text(BASE.replace("classes: 3, channels: 2, size: 7, examples: 40, ", ""))
    plan = plan_sweep(path, [], ["data.dataset=digits,synthetic", "model.depth=1,2,3"])
    assert estimated(plan).seconds == pytest.approx(7.0 + 3 * 9.0 + 3 * 2.0)
    assert [content["data"]["dataset"] for content in machine.asked[0]] == [
        *["digits"] * 3,
        *["synthetic"] * 3,
    ]


def test_cells_that_differ_in_their_seed_are_tried_once(tmp_path: Path, machine: Machine) -> None:
    found = estimated(plan_of(tmp_path, "model.depth=1", "seed=0,1,2,3"), at_once=2)
    assert len(machine.asked[0]) == 1
    assert found.seconds == pytest.approx(7.0 + 4 * 3.0 / 2)
    assert found.basis == "the first steps of a cell, tried now"


def test_the_trial_has_the_threads_of_a_worker_and_a_folder_that_goes(
    tmp_path: Path, machine: Machine
) -> None:
    estimated(plan_of(tmp_path, "model.depth=1"), threads=3)
    [(command, options)] = machine.commands
    folder = command[3]
    assert command[1:] == ["-m", "gradexp.sweeps.trial", folder, "3"]
    assert options["env"]["OMP_NUM_THREADS"] == "3"
    assert options["env"]["TMPDIR"] == folder
    assert options["capture_output"]
    assert not Path(folder).exists()


def test_a_cell_that_fails_is_named(tmp_path: Path, machine: Machine) -> None:
    machine.answer = {"failed": 1, "error": "ValueError: no"}
    plan = plan_of(tmp_path, "model.depth=1,2,3")
    with pytest.raises(RunError, match=r"^cell model\.depth=2 seed=0: ValueError: no$"):
        estimated(plan)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lambda c: subprocess.TimeoutExpired(c, 60.0), "timed out after 60.0 seconds"),
        (lambda c: subprocess.CalledProcessError(3, c), "returned non-zero exit status 3."),
    ],
)
def test_a_trial_that_does_not_end_well_says_how(
    error: Callable[[list[str]], Exception],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = []

    def run(command: list[str], **options: Any) -> None:
        limits.append(options["timeout"])
        assert options["check"]
        raise error(command)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RunError) as caught:
        estimated(plan_of(tmp_path, "model.depth=1"))
    assert str(caught.value) == f"the trial of some cells {said}"
    assert limits == [60.0]


def _progress(step: int) -> Progress:
    return Progress(step, 1.0, 0.5, grad_norms=None)  # type: ignore[arg-type]


def _ended(seconds: float) -> EpochEnd:
    return EpochEnd(1, 10, 1.0, 0.5, 1.0, 0.5, test_seconds=seconds)


def run_by_hand(watch: Observer, clock: Clock, chunks: Sequence[tuple[int, float, float]]) -> None:
    """A run of 100 steps, 10 an epoch: 3 s of loading, then chunks (step, seconds, testing)."""
    clock.now += 3.0
    watch.started(Start("tiny", [], total_steps=100, per_epoch=10, first_step=0))
    for step, seconds, testing in chunks:
        clock.now += seconds + testing
        if testing:
            watch.epoch_ended(_ended(testing))
        watch.progressed(_progress(step))


# The first chunk holds a probe of 1 s before its 10 steps; a step takes 0.05 s.
CHUNKS = [(10, 1.5, 0.2), (20, 0.5, 0.4), (40, 1.0, 0.0)]


def test_the_cost_of_a_cell_is_taken_apart(clock: Clock) -> None:
    watch = trial.Stopwatch(1000.0)
    run_by_hand(watch, clock, CHUNKS)
    clock.now += 0.4
    cost = watch.cost(11)
    assert cost.start == pytest.approx(3.0 + 2 * 1.0)
    # Nine more probes in 100 steps, and 0.3 s of testing every 10.
    assert cost.step == pytest.approx(0.05 + 9 * 1.0 / 100 + 0.3 / 10)
    assert cost.per_epoch == 10
    assert cost.spent == pytest.approx(3.0 + 1.5 + 0.5 + 1.0 + 0.6 + 0.4)


def test_without_later_steps_the_first_stand_for_all(clock: Clock) -> None:
    watch = trial.Stopwatch(1000.0)
    run_by_hand(watch, clock, CHUNKS[:1])
    cost = watch.cost(2)
    assert (cost.start, cost.step) == (pytest.approx(3.0), pytest.approx(0.15 + 0.2 / 10))


def test_first_steps_that_were_faster_make_no_negative_probe(clock: Clock) -> None:
    watch = trial.Stopwatch(1000.0)
    run_by_hand(watch, clock, [(10, 0.1, 0.0), (20, 1.0, 0.0)])
    cost = watch.cost(11)
    assert (cost.start, cost.step) == (pytest.approx(3.0), pytest.approx(0.1))


def test_a_run_without_steps_costs_what_it_took(clock: Clock) -> None:
    watch = trial.Stopwatch(1000.0)
    run_by_hand(watch, clock, [])
    clock.now += 2.0
    assert watch.cost(2) == Cost(pytest.approx(5.0), 0.0, 10, pytest.approx(5.0))


@pytest.mark.parametrize(("patience", "seen"), [(0.0, 2), (2.5, 2), (2.7, 3), (3.7, 4)])
def test_a_trial_ends_after_its_time_but_not_before_two_chunks(
    patience: float, seen: int, clock: Clock
) -> None:
    watch = trial.Stopwatch(patience)
    with pytest.raises(BaseException, match=r"^$") as caught:
        run_by_hand(watch, clock, [*CHUNKS, (100, 3.0, 0.0)])
    assert len(watch.chunks) == seen
    assert not isinstance(caught.value, Exception)  # no part may take it for an error of its own


@pytest.mark.parametrize(
    ("probe", "probes"),
    [
        ("{every: 10, examples: 40}", 11),
        ("{every: 30, examples: 40}", 5),
        ("{every: epoch, examples: 40}", 11),
        ("{every: auto, examples: 5}", 10),  # 5 % of 100 x 10 examples are 50, 5 each
        ("{every: auto, examples: all}", 3),  # there are 100 to look at: the fewest
    ],
)
def test_probes_between_are_counted_as_the_run_will_make_them(
    probe: str, probes: int, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the trial itself there are none between."""
    tried: list[Any] = []

    def execute(config: Any, folder: Path, *, fresh: bool, observer: Observer) -> None:
        tried.append((config.probe.every, folder, fresh))
        run_by_hand(observer, clock, CHUNKS)

    monkeypatch.setattr(trial, "execute", execute)
    config = resolve(parse_yaml(f"{BASE}probe: {probe}", "tiny.yaml"))
    cost = trial.attempt(config, tmp_path, 0.0)
    assert cost.start == pytest.approx(5.0)
    assert cost.step == pytest.approx(0.05 + (probes - 2) / 100 + 0.3 / 10)
    [(every, folder, fresh)] = tried
    assert (every > 10**6, folder, fresh) == (True, tmp_path, True)


def test_the_first_attempt_of_all_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It pays for what a process does once; so it is short, and made again."""
    tried: list[tuple[int, float]] = []

    def attempt(config: Any, folder: Path, seconds: float) -> Cost:
        assert folder == tmp_path
        tried.append((config.model.depth, seconds))
        return Cost(float(len(tried)), 0.5, 10, 2.0)

    monkeypatch.setattr(trial, "attempt", attempt)
    cells = plan_of(tmp_path, "model.depth=2,3").cells
    contents = [cell.config.model_dump(mode="json") for cell in cells]
    found = trial.attempts(contents, tmp_path)
    assert tried == [(2, 0.0), (2, 0.75), (3, 0.75)]
    assert [cost["start"] for cost in found["costs"]] == [2.0, 3.0]
    assert found["costs"][0] == {"start": 2.0, "step": 0.5, "per_epoch": 10, "spent": 2.0}


@pytest.mark.parametrize(
    ("error", "said"), [(DataError("is not there"), "is not there"), (OSError("no"), "OSError: no")]
)
@pytest.mark.parametrize("failing", [0, 1])
def test_the_attempt_that_fails_is_told(
    error: Exception, said: str, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(config: Any, *_: Any) -> Cost:
        if config.model.depth == 2 + failing:
            raise error
        return Cost(1.0, 0.5, 10, 2.0)

    monkeypatch.setattr(trial, "attempt", attempt)
    cells = plan_of(tmp_path, "model.depth=2,3").cells
    contents = [cell.config.model_dump(mode="json") for cell in cells]
    assert trial.attempts(contents, tmp_path) == {"failed": failing, "error": said}
