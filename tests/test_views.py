"""What is seen while a run trains or a sweep works: on a terminal in memory, and without one."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gradexp.cli import sweeping
from gradexp.cli.screen import gradient_bars, screen
from gradexp.sweeps import Cell, SweepStatus, View, plan_sweep, sweep_view
from gradexp.sweeps.events import Began, Ended, Lost, Moved, Waiting
from gradexp.sweeps.view import duration
from gradexp.train import EpochEnd, Observer, Progress, Start
from tests.clocks import Clock
from tests.terminals import Terminal, call, displays, terminal

__all__ = ["displays", "terminal"]

WHY = "[b]no memory[/b] " * 12 + "at all"  # longer than any line, and no markup
TABLE: Any = SimpleNamespace(rows={})


class Plain:
    """A stream that is no terminal, 40 columns wide."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.console = Console(file=self.file, width=40)

    def lines(self) -> list[str]:
        """What was said since the last time."""
        said = self.file.getvalue().splitlines()
        self.file.seek(0)
        self.file.truncate()
        return said


@pytest.fixture
def plain() -> Plain:
    return Plain()


@pytest.fixture
def cells(tiny: Path) -> Sequence[Cell]:
    """Three cells; the second one will fail."""
    cells = plan_sweep(tiny, [], ["model.depth=2,3,4"]).cells
    TABLE.rows = {cell.run: {"error": WHY} for cell in cells}
    return cells


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.4, "0 s"),
        (0.6, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (60, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (3661, "1 h 1 min"),
        (7500, "2 h 5 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_a_time_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- a sweep without a terminal ---


@pytest.fixture
def followed(plain: Plain, clock: Clock) -> View:
    """A view without a terminal, of three cells, just opened."""
    assert clock.now
    view = sweep_view(plain.console)
    view.opened(3)
    assert plain.lines() == ["3 cells to run"]
    return view


def test_failures_and_losses_are_said_at_once(
    followed: View, plain: Plain, cells: Sequence[Cell]
) -> None:
    first, second, third = cells
    followed.told(Began(first, "1"), TABLE)
    followed.told(Moved(first, "1", 5, 12, 2.0), TABLE)
    followed.told(Ended(first, "1"), TABLE)
    assert plain.lines() == []
    followed.told(Ended(second, "1", "it failed"), TABLE)
    assert plain.lines() == [f"failed {second.run} (model.depth=3 seed=0): {WHY}"]
    followed.told(Lost(third, "1", WHY), TABLE)
    assert plain.lines() == [f"retry {third.run} (model.depth=4 seed=0): {WHY}"]
    followed.told(Ended(third, "1"), TABLE)
    assert plain.lines() == ["3/3 cells done, took 0 s"]
    followed.closed()
    assert plain.lines() == []


def test_now_and_then_the_rest_is_said(
    followed: View, plain: Plain, cells: Sequence[Cell], clock: Clock
) -> None:
    clock.now += 5.0
    followed.told(Waiting(), TABLE)
    assert plain.lines() == []
    clock.now += 0.1
    followed.told(Waiting(), TABLE)
    assert plain.lines() == ["0/3 cells done, 5 s so far"]
    clock.now += 4.9
    followed.told(Ended(cells[0], "1"), TABLE)
    assert plain.lines() == []
    clock.now += 5.0  # 15 s for one of three
    followed.told(Moved(cells[1], "1", 1, 2, 1.0), TABLE)
    assert plain.lines() == ["1/3 cells done, 30 s left"]
    clock.now += 4.0
    followed.told(Lost(cells[1], "1", "gone"), TABLE)
    assert len(plain.lines()) == 1
    clock.now += 4.0  # since the loss was said
    followed.told(Waiting(), TABLE)
    assert plain.lines() == []


@pytest.mark.parametrize(
    ("seconds", "left"),
    [(10.0, "20 s left"), (150.0, "5 min 0 s left"), (4000.0, "2 h 13 min left")],
)
def test_what_is_left_is_told_by_the_cells_that_ended(  # noqa: PLR0917
    followed: View, plain: Plain, cells: Sequence[Cell], clock: Clock, seconds: float, left: str
) -> None:
    clock.now += seconds
    followed.told(Ended(cells[0], "1"), TABLE)
    assert plain.lines() == [f"1/3 cells done, {left}"]
    clock.now += seconds
    followed.told(Ended(cells[1], "1"), TABLE)
    assert plain.lines() == [f"2/3 cells done, {duration(seconds)} left"]


# --- a sweep on a terminal ---

EMPTY, FULL = " " * 30, "━" * 30
THIRD = ("━" * 10).ljust(30)


def test_a_sweep_on_a_terminal(terminal: Terminal, cells: Sequence[Cell], clock: Clock) -> None:
    first, second, third = cells
    view = sweep_view(terminal.console)
    view.opened(3)
    assert not terminal.screen.cursor
    above = ["3 cells to run"]
    assert terminal.drawn() == [*above, f"cells {EMPTY} 0/3 0 s so far"]

    view.told(Began(first, "10"), TABLE)
    view.told(Began(second, "2"), TABLE)
    clock.now += 30
    view.told(Moved(second, "2", 5, 12, 2.3456), TABLE)
    depth_2, depth_3 = ("model.depth=2 seed=0  starting", "model.depth=3 seed=0")
    assert terminal.drawn() == [
        *above,
        f"cells {EMPTY} 0/3 30 s so far",
        f"  2  {depth_3}  step 5/12  loss 2.35",
        f" 10  {depth_2}",
    ]
    view.told(Waiting(), TABLE)
    view.told(Ended(first, "10"), TABLE)
    assert terminal.drawn() == [
        *above,
        f"cells {THIRD} 1/3 1 min 0 s left",
        f"  2  {depth_3}  step 5/12  loss 2.35",
    ]
    view.told(Lost(second, "2", "killed"), TABLE)
    above += [f"retry {second.run} (model.depth=3 seed=0): killed"]
    assert terminal.drawn() == [*above, f"cells {THIRD} 1/3 1 min 0 s left"]

    view.told(Began(second, "2"), TABLE)
    view.told(Began(third, "1"), TABLE)
    view.told(Ended(third, "1", "no"), TABLE)
    above += [f"failed {third.run} (model.depth=4 seed=0): {WHY}"]
    clock.now += 7170  # two hours for two cells
    *above_now, bar, line = terminal.drawn()
    assert above_now == above
    assert bar.split("2/3 ")[1] == "1 h 0 min left"
    assert line == f"  2  {depth_3}  starting"

    view.told(Ended(second, "2"), TABLE)
    assert terminal.drawn() == [*above, f"cells {FULL} 3/3 took 2 h 0 min"]
    view.closed()
    assert terminal.seen == [*above, "3/3 cells done, took 2 h 0 min"]
    assert terminal.screen.cursor
    assert terminal.live == []


def test_a_sweep_that_is_stopped_takes_its_picture_down(
    terminal: Terminal, cells: Sequence[Cell], clock: Clock
) -> None:
    view = sweep_view(terminal.console)
    view.opened(3)
    view.told(Began(cells[0], "1"), TABLE)
    terminal.drawn()
    clock.now += 8
    view.closed()
    assert terminal.seen == ["3 cells to run", "0/3 cells done, 8 s so far"]


def test_a_long_line_of_a_worker_is_one_line(terminal: Terminal, cells: Sequence[Cell]) -> None:
    terminal.console.width = 40
    view = sweep_view(terminal.console)
    view.opened(3)
    view.told(Moved(cells[0], "1", 123456, 1234567, 2.0), TABLE)
    *_, bar, line = terminal.drawn()
    assert bar.startswith("cells ")
    assert line.startswith("  1  model.depth=2 seed=0  step 123")
    assert len(line) <= 40


def test_a_real_sweep_is_drawn_and_closed(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    """The picture that the command shows while a sweep is at work."""
    seen: list[list[str]] = []

    def run_sweep(plan: Any, *_: Any, view: View) -> None:
        view.opened(len(plan.cells))
        view.told(Began(plan.cells[0], "1"), TABLE)
        seen.append(terminal.drawn())
        view.closed()
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeping, "run_sweep", run_sweep)
    call("sweep", tiny, "--seeds", "2", stderr=terminal)
    ((said, bar, line),) = seen
    assert said == "2 cells to run"
    assert bar.startswith("cells ")
    assert line == "  1  seed=0  starting"
    assert terminal.seen[0] == said
    assert terminal.seen[1].startswith("0/2 cells done, ")


# --- `status --watch` ---

CELLS = 40


class Watched:
    """A sweep that is seen three times: at work, at work, ended; and what the terminal shows."""

    def __init__(self, terminal: Terminal | None = None) -> None:
        self._terminal = terminal
        self.asked: list[Any] = []
        self.waited: list[float] = []
        self.seen: list[list[str]] = []

    def status(self, path: Path, limits: Path | None = None) -> SweepStatus:
        self.asked.append((path, limits))
        done = (9, 29, CELLS)[len(self.asked) - 1]
        states = ["finished"] * done + ["running"] + ["planned"] * (CELLS - done - 1)
        rows = [
            {"cell": f"c{number}", "run": f"r{number}", "status": state, "verdict": ""}
            for number, state in enumerate(states[:CELLS])
        ]
        return SweepStatus(path, ["cell"], rows, live=len(self.asked) < 3)

    def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        if self._terminal:
            self.seen.append(self._terminal.seen)


def watching(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(sweeping, "status", watched.status)
    monkeypatch.setattr(time, "sleep", watched.sleep)
    return watched


def first_words(lines: Sequence[str]) -> list[str]:
    return [line.split()[0] for line in lines if line]


def test_watching_shows_the_cells_at_work_until_the_sweep_has_ended(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watching(Watched(terminal), monkeypatch)
    assert call("status", "out", "--watch", stdout=terminal).exit_code == 0
    assert watched.asked == [(Path("out"), None)] * 3
    assert watched.waited == [1.0, 1.0]
    first, second = watched.seen
    # Of 30 lines 24 are for cells, from just before the one at work if there are enough below it.
    assert first_words(first) == ["cell", *(f"c{number}" for number in range(8, 32)), "40"]
    assert first[-1] == "40 cells: 30 planned, 1 running, 9 finished. A sweep is at work."
    assert first_words(second) == ["cell", *(f"c{number}" for number in range(16, 40)), "40"]
    assert first_words(terminal.seen) == ["cell", *(f"c{number}" for number in range(40)), "40"]
    assert terminal.seen[-1] == "40 cells: 40 finished."
    assert terminal.live == []


def test_watching_with_other_limits_and_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    watched = watching(Watched(), monkeypatch)
    limits = tmp_path / "limits.yaml"
    answer = call("status", "out", "--watch", "--rules", limits)
    assert watched.asked == [(Path("out"), limits)] * 3
    assert first_words(answer.lines) == ["cell", *(f"c{number}" for number in range(40)), "40"]
    assert "\x1b" not in answer.stdout


def test_ctrl_c_ends_the_watching_and_is_no_failure(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    watching(Watched(terminal), monkeypatch)
    monkeypatch.setattr(time, "sleep", interrupt)
    answer = call("status", "out", "--watch", stdout=terminal)
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert terminal.live == []
    assert terminal.screen.cursor


# --- a run ---

TRAINED = EpochEnd(1, 50, 2.5, 0.1257, 2.0, 0.456, 0.01)


def begun(view: Observer, first_step: int = 0, name: str = "[b]net[/b]") -> Observer:
    view.started(Start(name, ["a", "b"], 100, 50, first_step))
    return view


def moved(view: Observer, step: int, norms: Sequence[float] = (1e-3, 1.0)) -> None:
    view.progressed(Progress(step, 2.2468, 0.1266, np.array(norms)))


def test_without_a_terminal_a_run_says_a_line_now_and_then(plain: Plain, clock: Clock) -> None:
    view = begun(screen(plain.console))
    assert plain.lines() == ["[b]net[/b]: 2 layers, 100 steps"]
    clock.now += 5.0
    moved(view, 10)
    assert plain.lines() == []
    clock.now += 0.1
    moved(view, 11)
    assert plain.lines() == ["step 11/100, loss 2.247, accuracy 12.7%"]
    clock.now += 4.0
    moved(view, 12)
    assert plain.lines() == []
    view.epoch_ended(TRAINED)
    assert plain.lines() == [
        "epoch 1, step 50/100, loss 2.5, accuracy 12.6%, test loss 2, accuracy 45.6%"
    ]
    clock.now += 4.0  # since the epoch was said
    moved(view, 60)
    view.closed()
    assert plain.lines() == []


BARS_OF_TWO = [
    "|gradient| of each layer, from the input to the readout",
    "  1e+0  █",
    "        █",
    "        █",
    "        █",
    "  1e-3 ▁█",
]


def bar(done: int, steps: str, figures: str) -> str:
    """A bar of 20 columns for 100 steps."""
    return f"net {('━' * (done // 5)).ljust(20)} {steps}{figures}"


def test_a_run_on_a_terminal(terminal: Terminal, clock: Clock) -> None:
    view = begun(screen(terminal.console), 10, "net")
    assert terminal.drawn() == [bar(10, " 10/100", "  -:--:--")]
    assert not terminal.screen.cursor
    clock.now += 4
    moved(view, 30)
    figures = " epoch 1  loss 2.25  acc 13%  5 steps/s -:--:--"
    assert terminal.drawn() == [bar(30, " 30/100", figures), *BARS_OF_TWO]
    clock.now += 1
    moved(view, 50)
    figures = " epoch 1  loss 2.25  acc 13%  8 steps/s 0:00:03"
    assert terminal.drawn() == [bar(50, " 50/100", figures), *BARS_OF_TWO]
    view.epoch_ended(TRAINED)
    clock.now += 3
    moved(view, 60)
    figures = " epoch 2  loss 2.25  acc 13%  test 46%  6 steps/s 0:00:06"
    assert terminal.drawn() == [bar(60, " 60/100", figures), *BARS_OF_TWO]
    view.closed()
    assert terminal.seen == []
    assert terminal.screen.cursor
    assert terminal.live == []


def test_a_run_that_ends_before_it_begins_has_nothing_to_close(terminal: Terminal) -> None:
    screen(terminal.console).closed()
    assert terminal.getvalue() == ""


def test_the_first_step_of_an_epoch_belongs_to_it(terminal: Terminal) -> None:
    view = begun(screen(terminal.console))
    for step, epoch in ((1, 1), (50, 1), (51, 2), (100, 2)):
        moved(view, step)
        assert f" epoch {epoch}  " in terminal.drawn()[0]


def test_a_moment_without_time_divides_nothing(terminal: Terminal, clock: Clock) -> None:
    view = begun(screen(terminal.console), 50)
    assert clock.now
    moved(view, 50)
    assert "  0 steps/s" in terminal.drawn()[0]


def test_a_real_run_leaves_results_alone_on_a_terminal(
    terminal: Terminal, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call("run", tiny, stderr=terminal)
    assert answer.exit_code == 0
    assert terminal.seen == []
    assert "step" in terminal.getvalue()
    assert terminal.live == []
    again = call("run", tiny, "--fresh")
    assert answer.stdout == again.stdout
    assert again.stderr.startswith("tiny: 4 layers, 12 steps\n")


# --- the bars ---


def picture(norms: Sequence[float]) -> list[str]:
    """The lines below the title, without blanks at their ends."""
    title, *lines = gradient_bars(np.array(norms)).plain.split("\n")
    assert title == BARS_OF_TWO[0]
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize(
    ("norms", "lines"),
    [
        # In eighths of a line 1, 1 + 39 / 2, and 40.
        ([1e-2, 1e-1, 1.0], ["  1e+0   █", "         █", "        ▅█", "        ██", "  1e-2 ▁██"]),
        # The scale is of whole decades, 1e-4 to 1e1; so 5, 38, 19 and 31 eighths.
        (
            [3e-4, 5.0, 2e-2, 7e-1],
            ["  1e+1  ▆", "        █ ▇", "        █▃█", "        ███", "  1e-4 ▅███"],
        ),
        ([2.0, 3.0], ["  1e+1", "", "        ▄", "       ▅█", "  1e+0 ██"]),
        ([1e-30, 1e-10], [" 1e-10  █", "        █", "        █", "        █", " 1e-30 ▁█"]),
        ([1e3, 1e12], [" 1e+12  █", "        █", "        █", "        █", "  1e+3 ▁█"]),
        # Equal norms that are powers of ten have the decade below them for a scale.
        ([1.0, 1.0], ["  1e+0 ██", "       ██", "       ██", "       ██", "  1e-1 ██"]),
        # What is no number, and nothing, leave the scale to the others.
        (
            [math.nan, 1e-3, 1e-2, 0.0, math.inf, -math.inf],
            ["  1e-2   █", "         █", "         █", "         █", "  1e-3 x▁█0xx"],
        ),
        ([0.0, math.nan], ["  1e+0", "", "", "", "  1e-1 0x"]),
    ],
)
def test_bars_by_hand(norms: list[float], lines: list[str]) -> None:
    assert picture(norms) == lines


@pytest.mark.parametrize(
    ("layers", "columns"), [(1, 1), (2, 2), (63, 63), (64, 64), (65, 64), (500, 64)]
)
def test_every_layer_has_a_bar_as_far_as_there_is_room(layers: int, columns: int) -> None:
    norms = [*np.logspace(-3, 0, layers - 1), math.nan] if layers > 1 else [math.nan]
    *_, lowest = picture(norms)
    assert len(lowest) == len("  1e-3 ") + columns
    assert lowest.endswith("x")  # the last layer is among them
    first = picture([0.0, *norms])[-1]
    assert first[7] == "0"  # and so is the first


def test_bars_do_not_wrap(terminal: Terminal) -> None:
    terminal.console.width = 40
    view = begun(screen(terminal.console))
    moved(view, 10, np.logspace(-3, 0, 60))
    lines = terminal.drawn()
    below = lines[[line.startswith("|gradient|") for line in lines].index(True) + 1 :]
    assert len(below) == 5
