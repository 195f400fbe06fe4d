"""A run that goes on is the run that was never stopped, byte for byte, wherever it was stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradexp.config import Config
from gradexp.errors import RunError
from gradexp.records import RunDir
from gradexp.train import EpochEnd, Observer, Progress, execute, run_dir
from gradexp.train.checkpoint import Checkpoints, load
from tests.checkpoints import read_checkpoint
from tests.clocks import Clock
from tests.conftest import ROOT, StopAt
from tests.nets import config_of
from tests.torn import (
    ENVIRONMENT,
    At,
    Disk,
    Event,
    Kind,
    arm,
    fill_up,
    interrupt,
    plain_name,
    repeatable,
    tear,
)

NET = (
    "model={family: mlp, depth: 2, width: 5, norm: batch, dropout: 0.2}",
    "train={steps: 13, optimizer: {name: sgd, lr: 0.1, momentum: 0.9}}",
    "probe={every: 4, examples: 12}",
)
CPU = torch.device("cpu")


def small(*overrides: str) -> Config:
    return config_of(*NET, *overrides)


def work(parent: Path) -> None:
    """As a process of its own does it."""
    execute(small(), parent, checkpoint_seconds=0)


def work_until_killed(parent: str) -> None:
    """As a process does it whose environment names the moment of its death."""
    arm()
    work(Path(parent))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The run that was never stopped."""
    return repeatable(execute(small(), tmp_path_factory.mktemp("whole")).run)


def stopped(config: Config, parent: Path, at: int = 5) -> RunDir:
    """A run that Ctrl-C ended; its checkpoint is at step 4 for one that ends at the probe at 8."""
    with pytest.raises(KeyboardInterrupt):
        execute(config, parent, observer=StopAt(at), checkpoint_seconds=0)
    return run_dir(config, parent)


@pytest.fixture(scope="module")
def once_stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where that run lies, stopped at the probe at 8 steps with a checkpoint at 4."""
    return stopped(small(), tmp_path_factory.mktemp("stopped")).path


@pytest.fixture
def half(once_stopped: Path, tmp_path: Path) -> RunDir:
    """A copy of it, where it is to go on: what is in the directory is all that counts."""
    return RunDir(shutil.copytree(once_stopped, tmp_path / once_stopped.name))


# --- whatever the state consists of --------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        ["train.optimizer={name: sgd, lr: 0.1}"],
        ["train.optimizer={name: sgd, lr: 0.1, momentum: 0.9, nesterov: true}"],
        ["train.optimizer=adam", "train.clip={name: norm, max_norm: 0.5}"],
        ["train.optimizer=adamw", "train.weight_decay=0.1", "train.l1=0.01"],
        ["train.optimizer=rmsprop", "model.activation=prelu"],
        ["train.schedule={name: cosine, warmup_steps: 3}", "probe.gradients_every=3"],
        ["model={family: cnn, depth: 3, width: 2}", "data.augment=crop_flip"],
        ["train.optimizer.lr=1e20", "model.norm=none"],  # ends early, and says why
    ],
    ids=lambda settings: settings[0],
)
def test_everything_that_decides_the_next_step_is_kept(tmp_path: Path, settings: list[str]) -> None:
    config = small(*settings)
    never = execute(config, tmp_path / "never").run
    for at in (1, 12):  # stopped again after it went on
        with contextlib.suppress(KeyboardInterrupt):
            execute(config, tmp_path / "parts", observer=StopAt(at), checkpoint_seconds=0)
    outcome = execute(config, tmp_path / "parts")
    assert outcome.already_done or outcome.resumed_from is not None
    assert repeatable(outcome.run) == repeatable(never)


def test_what_is_told_at_the_end_counts_epochs_of_all_attempts(tmp_path: Path) -> None:
    """A run stopped in its very last portion closes no epoch again, but knows of all."""
    config = small("train={steps: 12}")
    stopped(config, tmp_path, at=12)
    ends: list[int] = []

    class Ends(Observer):
        def epoch_ended(self, end: EpochEnd) -> None:
            ends.append(end.epoch)

    outcome = execute(config, tmp_path, observer=Ends())
    assert outcome.resumed_from == 8
    assert ends == [2, 3]  # after 10 and 12 steps
    assert outcome.run.read_summary()["epochs"] == 3
    assert outcome.run.read("epochs")["epoch"].tolist() == [1, 2, 3]


# --- wherever it was stopped ---------------------------------------------------------------------

KILLS: list[tuple[Kind, str, int]] = [
    ("write", "layers.csv", 1),
    ("write", "checkpoint.pt", 0),
    ("replace", "checkpoint.pt", 1),
    ("write", "steps.csv", 4),
    ("replace", "summary.json", 0),
    ("replace", "manifest.json", 1),
]


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("moment", KILLS, ids=lambda moment: f"{moment[0]}-{moment[1]}")
def test_a_kill_at_any_moment_costs_no_result(
    tmp_path: Path, whole: dict[str, object], moment: tuple[Kind, str, int]
) -> None:
    kind, name, number = moment
    code = "import sys; from tests import test_resume; test_resume.work_until_killed(sys.argv[1])"
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, ENVIRONMENT: tear(tmp_path, number, kind, name)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    run = run_dir(small(), tmp_path)
    seen = run.read("steps")["step"].tolist()
    assert seen == list(range(len(seen)))
    assert not run.done()
    assert not run.in_use()
    assert repeatable(execute(small(), tmp_path).run) == whole


@pytest.mark.parametrize(
    ("kind", "name", "number"),
    [
        ("replace", "manifest.json", 0),
        ("replace", "checkpoint.pt", 1),
        ("write", "epochs.csv", 1),
        ("write", "units.csv", 3),
        ("write", "steps.csv", 4),
        ("replace", "summary.json", 1),
        ("write", "manifest.json", 1),
    ],
)
def test_ctrl_c_at_any_moment_costs_no_result(
    tmp_path: Path, whole: dict[str, object], kind: Kind, name: str, number: int
) -> None:
    at = At(number, kind, name, interrupt)
    with pytest.raises(KeyboardInterrupt), Disk(tmp_path, at):
        work(tmp_path)
    outcome = execute(small(), tmp_path)
    assert (outcome.resumed_from is None) == ((name, number) == ("manifest.json", 0))
    assert repeatable(outcome.run) == whole


@pytest.mark.parametrize(
    ("kind", "name", "number"),
    [
        ("write", "layers.csv", 1),
        ("write", "signal.csv", 0),
        ("fsync", "steps.csv", 0),
        ("write", "checkpoint.pt", 1),
        ("write", "gradients.csv", 2),
        ("replace", "summary.json", 0),
    ],
)
def test_a_disk_that_fills_up_at_any_moment_costs_no_result(
    tmp_path: Path, whole: dict[str, object], kind: Kind, name: str, number: int
) -> None:
    full = rf"{name}: cannot be written: No space left on device$"
    with pytest.raises(RunError, match=full), Disk(tmp_path, At(number, kind, name, fill_up)):
        work(tmp_path)
    run = run_dir(small(), tmp_path)
    assert run.status() == "failed"
    assert not run.traceback.exists()
    assert repeatable(execute(small(), tmp_path).run) == whole


def test_a_disk_too_full_for_what_only_saves_time_is_no_obstacle(
    tmp_path: Path, whole: dict[str, object]
) -> None:
    def hear(event: Event) -> None:
        if plain_name(event.path) == "evidence.json":
            fill_up()

    with Disk(tmp_path, hear):
        run = execute(small(), tmp_path).run
    left = {name: one for name, one in whole.items() if name != "evidence.json"}
    assert repeatable(run) == left


def test_tables_reach_the_disk_before_the_checkpoint_that_counts_on_them(tmp_path: Path) -> None:
    events: list[tuple[str, str]] = []

    def hear(event: Event) -> None:
        events.append((event.kind, plain_name(event.path)))

    with Disk(tmp_path, hear):
        work(tmp_path)
    tables = {
        "gradients.csv",
        "signal.csv",
        "units.csv",
        "unit_events.csv",
        "steps.csv",
        "epochs.csv",
    }
    opened = [index for index, one in enumerate(events) if one == ("open", "checkpoint.pt")]
    assert len(opened) == 4  # at 0, 4, 8 and 12 steps
    for index in opened:
        synced = events[index - len(tables) : index]
        assert {name for kind, name in synced if kind == "fsync"} == tables
        assert [kind for kind, _ in events[index : index + 4]] == [
            "open",
            "write",
            "fsync",
            "replace",
        ]


def test_a_checkpoint_goes_when_the_end_is_on_record(tmp_path: Path, half: RunDir) -> None:
    run = half
    saved = run.checkpoint.read_bytes()
    seen: list[tuple[str | None, bool]] = []

    class Ear(Observer):
        def closed(self) -> None:
            seen.append((run.status(), run.checkpoint.exists()))

    execute(small(), tmp_path, observer=Ear())
    assert seen == [("finished", True)]
    assert not run.checkpoint.exists()
    run.checkpoint.write_bytes(saved)  # a kill in between left it
    assert execute(small(), tmp_path).already_done
    assert not run.checkpoint.exists()


# --- how often -----------------------------------------------------------------------------------


def test_a_checkpoint_is_due_after_so_many_seconds(tmp_path: Path, clock: Clock) -> None:
    clock.now = 100.0
    checkpoints = Checkpoints(RunDir(tmp_path), 15.0)
    for now, due in ((100.0, False), (114.9, False), (115.0, True), (120.0, True)):
        clock.now = now
        assert checkpoints.due() == due
    checkpoints.latest = {"step": 3}
    checkpoints.save()
    for now, due in ((120.0, False), (134.9, False), (135.0, True)):
        clock.now = now
        assert checkpoints.due() == due


@pytest.mark.parametrize(
    ("portion", "options", "saved"),
    [
        (4.9, {}, 0),
        (5.0, {}, 1),  # 15 seconds before the last portion
        (16.0, {}, 3),
        (4.9, {"checkpoint_seconds": 4.9}, 3),
        (0.0, {"checkpoint_seconds": 0}, 4),
    ],
)
def test_a_checkpoint_is_made_every_15_seconds_unless_asked_otherwise(
    tmp_path: Path,
    clock: Clock,
    portion: float,
    options: dict[str, float],
    saved: int,
) -> None:
    """The run works in four portions: they begin at 0, 4, 8 and 12 steps."""
    clock.now = 0.0

    class Slow(Observer):
        def progressed(self, _progress: Progress) -> None:
            clock.now += portion

    at = At(-1, "replace", "checkpoint.pt", interrupt)
    with Disk(tmp_path, at):
        execute(small(), tmp_path, observer=Slow(), **options)  # type: ignore[arg-type]
    assert at.seen == saved


@pytest.mark.parametrize(
    ("error", "saved"), [(KeyboardInterrupt, True), (ValueError, False), (SystemExit, False)]
)
def test_only_ctrl_c_saves_what_is_newest(
    tmp_path: Path, error: type[BaseException], *, saved: bool
) -> None:
    run = RunDir(tmp_path)
    checkpoints = Checkpoints(run, 0)
    checkpoints.latest = {"step": 3}
    with pytest.raises(error), checkpoints:
        raise error
    assert run.checkpoint.exists() == saved


def test_ctrl_c_before_anything_was_done_saves_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with pytest.raises(KeyboardInterrupt), Checkpoints(run, 0):
        raise KeyboardInterrupt
    assert not run.checkpoint.exists()


# --- what cannot be gone on from -----------------------------------------------------------------


def without(run: RunDir) -> None:
    run.checkpoint.unlink()


def emptied(run: RunDir) -> None:
    run.checkpoint.write_bytes(b"")


def cut(run: RunDir) -> None:
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:-100])


def scrambled(run: RunDir) -> None:
    run.checkpoint.write_bytes(b"no checkpoint at all")


def of_another_kind(run: RunDir) -> None:
    torch.save([1, 2, 3], run.checkpoint)


def of_an_earlier_version(run: RunDir) -> None:
    torch.save({"format": 3, "state": read_checkpoint(run.checkpoint)["state"]}, run.checkpoint)


def with_a_table_cut(run: RunDir) -> None:
    offset = read_checkpoint(run.checkpoint)["state"]["recording"]["offsets"]["units"]
    path = run.table_path("units")
    path.write_bytes(path.read_bytes()[: offset - 1])


def with_a_changed_row(run: RunDir) -> None:
    content = bytearray(run.table_path("gradients").read_bytes())
    content[content.index(b"\n") + 1] ^= 1
    run.table_path("gradients").write_bytes(content)


def with_a_folder_for_a_table(run: RunDir) -> None:
    run.table_path("epochs").unlink()
    run.table_path("epochs").mkdir()


def with_a_table_lost(run: RunDir) -> None:
    run.table_path("signal").unlink()


def with_a_folder_in_its_place(run: RunDir) -> None:
    run.checkpoint.unlink()
    run.checkpoint.mkdir()


def with_half_a_manifest(run: RunDir) -> None:
    run.manifest.write_text('{"status": "runn')


DAMAGED = "checkpoint.pt is damaged, or of another version of gradexp"
CHANGED = "is not what it was at the checkpoint"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (without, None),
        (emptied, DAMAGED),
        (cut, DAMAGED),
        (scrambled, DAMAGED),
        (of_another_kind, DAMAGED),
        (of_an_earlier_version, DAMAGED),
        (with_a_folder_in_its_place, "checkpoint.pt cannot be read: Is a directory"),
        (with_a_table_cut, f"units.csv {CHANGED}"),
        (with_a_changed_row, f"gradients.csv {CHANGED}"),
        (with_a_table_lost, "signal.csv cannot be read: No such file or directory"),
        (with_a_folder_for_a_table, "epochs.csv cannot be read: Is a directory"),
        (with_half_a_manifest, "manifest.json is missing or damaged"),
    ],
)
def test_what_is_damaged_costs_work_but_no_result(
    tmp_path: Path,
    half: RunDir,
    whole: dict[str, object],
    spoil: Callable[[RunDir], None],
    why: str | None,
) -> None:
    spoil(half)
    outcome = execute(small(), tmp_path)
    assert (outcome.resumed_from, outcome.begun_anew) == (None, why)
    assert repeatable(outcome.run) == whole
    assert execute(small(), tmp_path).already_done


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_bit_that_flipped_is_noticed_wherever_it_is(half: RunDir, data: st.DataObject) -> None:
    recording = read_checkpoint(half.checkpoint)["state"]["recording"]
    offsets: dict[str, int] = recording["offsets"]
    lengths = {half.table_path(name): length for name, length in offsets.items()}
    lengths[half.checkpoint] = half.checkpoint.stat().st_size
    path = data.draw(st.sampled_from(sorted(lengths)))
    place = data.draw(st.integers(0, 8 * lengths[path] - 1))
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[place // 8] ^= 1 << place % 8
    path.write_bytes(damaged)
    with pytest.raises(RunError, match=path.name):
        load(half, CPU)
    path.write_bytes(content)
    assert load(half, CPU) is not None


def test_a_lack_of_memory_is_no_damage(
    tmp_path: Path, half: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that is full just now must not cost the work of hours."""
    with monkeypatch.context() as patch:
        full = mock.Mock(side_effect=torch.OutOfMemoryError("no memory left"))
        patch.setattr(torch, "load", full)
        with pytest.raises(torch.OutOfMemoryError):
            execute(small(), tmp_path)
    assert half.checkpoint.exists()
    assert execute(small(), tmp_path).resumed_from == 4


def test_a_table_may_be_exactly_as_long_as_the_checkpoint_says(
    tmp_path: Path, half: RunDir, whole: dict[str, object]
) -> None:
    run = half
    state = load(run, CPU)
    assert state is not None
    for name, offset in state["recording"]["offsets"].items():
        content = run.table_path(name).read_bytes()
        assert len(content) >= offset
        run.table_path(name).write_bytes(content[:offset])
    outcome = execute(small(), tmp_path)
    assert outcome.resumed_from == state["step"] == 4
    assert repeatable(outcome.run) == whole
