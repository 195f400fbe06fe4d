"""The check for machines with a GPU: its dry run, and that it would see what it looks for."""

from __future__ import annotations

import importlib
import math
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from gradexp.config import Source, resolve
from gradexp.records import TABLES, RunDir
from gradexp.train import execute
from gradexp.train.learner import build_network
from tests.conftest import ROOT

CPU = torch.device("cpu")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the script by name, found as Python finds them when it is started."""
    monkeypatch.syspath_prepend(ROOT / "scripts")

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return module


class Fake:
    """A device that does nothing, in the place of a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, setting: type) -> None:
        self.mode, self.modes = "default", list[str]()
        self.done = False  # with what keeps it busy, when it is asked
        monkeypatch.setattr(setting, "gpu", True)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda _cycles: None)
        monkeypatch.setattr(torch.cuda, "Event", lambda: self)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self._set)

    def _set(self, mode: str) -> None:
        self.mode = mode
        self.modes.append(mode)

    def record(self) -> None:
        """As an event."""

    def query(self) -> bool:
        return self.done

    def wait(self, _index: int = 0) -> None:
        """What torch does when a tensor is asked for its value."""
        if self.mode == "warn":
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=2)
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")


@pytest.fixture
def setting(script: Any, tmp_path: Path) -> Any:
    common = script("gpu_common")
    return common.Setting(CPU, common.TINY, tmp_path)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, script: Any) -> Fake:
    return Fake(monkeypatch, script("gpu_common").Setting)


# --- the whole script ----------------------------------------------------------------------------


@pytest.mark.usefixtures("forks")
def test_dry_run_goes_through_every_check(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("check_gpu").main(["--device", "cpu"]) == 0
    told = capsys.readouterr()
    assert "FAILED" not in told.out + told.err
    lines = [line.partition(": ") for line in told.err.splitlines() if line.endswith("]")]
    assert {name for name, _, _ in lines} == {
        "commands",
        "repeats",
        "figures",
        "waiting",
        "cost",
        "parts",
    }
    waiting = [text for name, _, text in lines if name == "waiting"]
    assert waiting == ["no step waits for the device: not on this device [-]"]
    assert all(text.endswith("[-]") for name, _, text in lines if name == "cost")
    assert all("[ok]" in text for name, _, text in lines if name not in {"waiting", "cost"})
    assert "signal.pre_grad_norm" in told.out


def test_an_error_is_a_failed_row_and_the_rest_goes_on(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_gpu, row = script("check_gpu"), script("gpu_common").Row

    def broken(_setting: Any) -> Iterator[Any]:
        yield row("before", "1", "1", ok=True)
        raise ValueError("a first line\nthe last line")

    def good(_setting: Any) -> Iterator[Any]:
        yield row("afterwards", "2", "2", ok=True)

    monkeypatch.setattr(check_gpu, "CHECKS", {"broken": broken, "good": good})
    assert check_gpu.main(["--device", "cpu"]) == 1
    table = capsys.readouterr().out
    assert "the last line" in table
    assert "a first line" not in table
    assert "before" in table
    assert "afterwards" in table
    assert check_gpu.main(["--device", "cpu", "--only", "good"]) == 0
    assert check_gpu.main(["--device", "cpu", "--only", "good", "--seconds", "0"]) == 1
    assert "no time was left" in capsys.readouterr().out


@pytest.mark.usefixtures("forks")
def test_a_command_that_fails_says_its_last_line(script: Any, setting: Any) -> None:
    code = "import sys; print('why it ended', file=sys.stderr); sys.exit(3)"
    row = script("check_gpu").command("run", ["-c", code], setting, 1)
    assert row.ok is False
    assert "exit code 3" in row.figure
    assert "why it ended" in row.figure


def test_a_run_elsewhere_is_not_one_on_the_device(script: Any, setting: Any) -> None:
    run = RunDir(setting.folder)
    finished = script("check_gpu").finished
    for status, device, ok in (
        ("finished", "cpu", True),
        ("finished", "cuda", False),
        ("failed", "cpu", False),
    ):
        run.write_manifest({"status": status, "device": {"type": device}})
        assert finished(run, setting) is ok


def test_a_part_that_cannot_train_is_named(
    script: Any, setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_gpu = script("check_gpu")

    def refuse(_setting: Any, _path: Sequence[str], part: dict[str, str]) -> None:
        if part.get("name") == "sgd":
            raise RuntimeError("no kernel")

    monkeypatch.setattr(check_gpu, "train_with", refuse)
    failed = [row for row in check_gpu.check_parts(setting) if not row.ok]
    assert [row.what for row in failed] == ["optimizers: sgd", "optimizers that train"]
    assert "no kernel" in failed[0].figure


# --- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "column", "found", "expected", "distance"),
    [
        ("signal", "pre_std", 1.01, 1.0, 0.01),
        ("signal", "pre_std", -2.0, -1.0, 1.0),
        ("signal", "pre_std", 1.0, None, math.inf),
        ("signal", "pre_std", None, 1.0, math.inf),
        ("signal", "pre_std", None, None, 0.0),
        ("signal", "pre_std", math.inf, math.inf, 0.0),
        ("signal", "pre_std", 1.0, 0.0, math.inf),
        ("signal", "pre_mean", 0.02, 0.01, 0.01),  # of the deviation, which is 1
        ("signal", "saturated_fraction", 0.3, 0.1, 0.2),
        ("units", "dead", 4, 3, 1.0),
        ("units", "dead", 3, 3, 0.0),
        ("layers", "kind", "conv", "linear", math.inf),
        ("layers", "kind", "linear", "linear", 0.0),
    ],
)
def test_distance_of_a_figure(  # noqa: PLR0917  a table of cases
    script: Any, table: str, column: str, found: Any, expected: Any, distance: float
) -> None:
    one, other = (pd.DataFrame({"pre_std": [1.0], column: [value]}) for value in (found, expected))
    cells = script("gpu_figures").deviations(TABLES[table].column(column), one, other)
    assert cells.tolist() == pytest.approx([distance])


@pytest.mark.parametrize(
    ("start", "later", "ok"),
    [(0.9e-5, 0.9e-4, True), (1.1e-5, 0.0, False), (0.0, 1.1e-4, False), (0.0, 0.0, True)],
)
def test_step_0_is_judged_more_strictly_than_later_ones(
    script: Any, start: float, later: float, ok: bool
) -> None:
    expected = pd.DataFrame(
        {"step": [0, 0, 3], "layer": ["a", "b", "c"], "pre_std": [2.0, 2.0, 2.0]}
    )
    found = expected.assign(pre_std=[2.0, 2 * (1 + start), 2 * (1 - later)])
    column = TABLES["signal"].column("pre_std")
    row = script("gpu_figures").worst_of(column, {"net": (found, expected)}).row("name")
    assert row.ok is ok
    assert ("(net b step 0)" in row.figure) == (start > later)
    assert ("(net c step 3)" in row.figure) == (later > start)


def test_counts_of_units_must_be_the_same(script: Any) -> None:
    expected = pd.DataFrame({"step": [0, 4], "layer": ["a", "a"], "dead": [3, 3]})
    column = TABLES["units"].column("dead")
    worst_of = script("gpu_figures").worst_of
    assert worst_of(column, {"net": (expected, expected)}).row("name").ok
    for dead in ([4, 3], [3, 4]):
        assert not worst_of(column, {"net": (expected.assign(dead=dead), expected)}).row("name").ok


def test_same_bytes_but_for_times(script: Any, setting: Any, tmp_path: Path) -> None:
    same = script("gpu_figures").same
    run = script("gpu_figures").carried_out(setting, "mlp", "one").run
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    path = copy.table_path("steps")
    lines = path.read_text().splitlines()
    assert lines[0].endswith(",step_seconds")
    *cells, _seconds = lines[2].split(",")
    path.write_text("\n".join([*lines[:2], ",".join([*cells, "9.5"]), *lines[3:], ""]))
    assert same("name", run, copy).ok
    path.write_text("\n".join([*lines[:2], ",".join([*cells[:-1], "0.5", "9.5"]), *lines[3:], ""]))
    row = same("name", run, copy)
    assert (row.ok, row.figure) == (False, "steps.csv: line 3 differs")
    path.write_text("\n".join([*lines[:2], ""]))
    row = same("name", run, copy)
    assert (row.ok, row.figure) == (False, "steps.csv: another number of lines")


# --- waiting -------------------------------------------------------------------------------------


def test_steps_of_runs_and_watched_loops_do_not_wait(
    script: Any, setting: Any, gpu: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = script("gpu_steps")
    small = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 10))
    monkeypatch.setattr(steps, "resnet", lambda: small)
    rows = list(steps.check_waiting(setting))
    assert all(row.ok is not False for row in rows)
    judged = {row.what.partition(":")[0] for row in rows if row.ok}
    assert judged == {
        "run, mlp",
        "run, cnn",
        "run, batch norm",
        "run, random",
        "watch, foreign",
        "watch, resnet18",
    }
    assert gpu.mode == "default"
    assert {"warn", "error"} <= set(gpu.modes)


def test_a_step_that_waits_is_found_and_named(script: Any, setting: Any, gpu: Fake) -> None:
    (row,) = script("gpu_steps").quiet("some net", gpu.wait, setting)
    assert row.ok is False
    assert "(3 x)" in row.figure
    assert "test_check_gpu.py" in row.figure or "gpu_steps.py" in row.figure
    assert gpu.mode == "default"


def test_what_torch_does_not_see_a_busy_device_shows(script: Any, setting: Any, gpu: Fake) -> None:
    gpu.done = True
    seen, busy = script("gpu_steps").quiet("some net", lambda _index: None, setting)
    assert seen.ok is True
    assert busy.ok is False


def test_waiting_is_an_error_where_it_must_not_be(script: Any, gpu: Fake) -> None:
    with (
        pytest.raises(RuntimeError, match="synchronizing"),
        script("gpu_steps").sync_mode("error"),
    ):
        gpu.wait()
    assert gpu.mode == "default"


# --- cost ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("bare", "ours", "limit", "ok"),
    [
        (1e-3, 1.14e-3, "1.15", True),
        (1e-3, 1.16e-3, "1.15", False),
        (4e-3, 4.19e-3, "1.05", True),
        (4e-3, 4.21e-3, "1.05", False),
    ],
)
def test_ratio_is_a_median_and_short_steps_may_cost_more(  # noqa: PLR0917  a table of cases
    script: Any, tmp_path: Path, bare: float, ours: float, limit: str, ok: bool
) -> None:
    common, steps = script("gpu_common"), script("gpu_steps")
    full = common.Setting(CPU, common.FULL, tmp_path)
    # The first round warms up; of the others one of each side was disturbed.
    times = {"ours": [9.0, ours, 7.0, ours], "bare": [1.0, bare, 7.0 / (ours / bare), bare]}
    row = steps.ratio("name", times, full, judged=True)
    assert (row.limit, row.ok) == (limit, ok)
    assert f"{1e3 * ours:.3f} over {1e3 * bare:.3f} ms, 3 rounds" in row.figure
    assert steps.ratio("name", times, full, judged=False).ok is None


def test_times_of_a_dry_run_are_not_judged(script: Any, setting: Any) -> None:
    times = {"ours": [1.0, 9.0], "bare": [1.0, 1.0]}
    assert script("gpu_steps").ratio("name", times, setting, judged=True).ok is None


def test_bare_nets_are_those_of_the_runs(script: Any) -> None:
    steps, size = script("gpu_steps"), script("gpu_common").TINY
    for net, channels, model in (
        (steps.plain_mlp(3, 5), 1, {"family": "mlp", "depth": 3, "width": 5}),
        (steps.plain_cnn(4), 3, {"family": "cnn", "depth": 6, "width": 4, "stages": 3}),
    ):
        settings = steps.timed_settings(size, model, channels)
        network = build_network(resolve(Source(settings)))
        shapes = [sorted(tuple(one.shape) for one in two.parameters()) for two in (net, network)]
        assert shapes[0] == shapes[1]
        images = torch.rand(2, channels, 28, 28)
        assert net(images).shape == network(images).shape


def test_a_bare_loop_takes_as_many_steps_as_each_chunk(script: Any, tmp_path: Path) -> None:
    counts = list[tuple[int, int]]()

    class Bare:
        def seconds(self, first: int, count: int) -> float:
            counts.append((first, count))
            return 1.0

    rounds = script("gpu_steps").Rounds(Bare())
    settings = {"data": {"train_examples": 64}, "train": {"steps": 7}, "probe": {"every": 3}}
    execute(resolve(Source({**settings, "device": "cpu"})), tmp_path, observer=rounds)
    assert counts == [(0, 3), (3, 3), (6, 1)]
    assert len(rounds.times["ours"]) == 3
    assert rounds.times["bare"] == [1.0, 1.0, 1.0]
