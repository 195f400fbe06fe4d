"""What is seen while a run trains: a progress bar and the gradient norm of every layer."""

from __future__ import annotations

import math
import time

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from gradexp.train import EpochEnd, Observer, Start
from gradexp.train import Progress as State

BLOCKS = " ▁▂▃▄▅▆▇█"
HEIGHT = 5
WIDEST = 64
SECONDS_BETWEEN_LINES = 5.0


def screen(console: Console) -> Observer:
    """The live view on a terminal, plain lines elsewhere."""
    return LiveScreen(console) if console.is_terminal else PlainLines(console)


class PlainLines(Observer):
    """A line per epoch, and one now and then between; no control codes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._epoch = 0
        self._said_at = time.monotonic()

    def started(self, start: Start) -> None:
        """Say what begins."""
        self._start = start
        self._say(f"{start.name}: {len(start.layers)} layers, {start.total_steps} steps")

    def epoch_ended(self, end: EpochEnd) -> None:
        """Say how the epoch went."""
        figures = self._figures(end.step, end.train_loss, end.train_accuracy)
        test = f"test loss {end.test_loss:.4g}, accuracy {end.test_accuracy:.1%}"
        self._say(f"epoch {end.epoch}, {figures}, {test}")

    def progressed(self, progress: State) -> None:
        """Say where the run is, when nothing was said for a while."""
        if time.monotonic() - self._said_at > SECONDS_BETWEEN_LINES:
            self._say(self._figures(progress.step, progress.loss, progress.accuracy))

    def _figures(self, step: int, loss: float, accuracy: float) -> str:
        return f"step {step}/{self._start.total_steps}, loss {loss:.4g}, accuracy {accuracy:.1%}"

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._said_at = time.monotonic()


class LiveScreen(Observer):
    """A progress bar with figures, and below it one bar per layer of log10 gradient norm."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._live: Live | None = None
        self._test = ""

    def started(self, start: Start) -> None:
        """Draw the empty screen."""
        self._start = start
        self._began = time.monotonic()
        self._task = self._bar.add_task(
            start.name, total=start.total_steps, completed=start.first_step, figures=""
        )
        self._live = Live(self._bar, console=self._console, refresh_per_second=8, transient=True)
        self._live.start()

    def progressed(self, progress: State) -> None:
        """Draw the newest figures."""
        done = progress.step - self._start.first_step
        rate = done / max(time.monotonic() - self._began, 1e-9)
        epoch = (progress.step - 1) // self._start.per_epoch + 1
        figures = (
            f"epoch {epoch}  loss {progress.loss:.3g}  acc {progress.accuracy:.0%}"
            f"{self._test}  {rate:.0f} steps/s"
        )
        self._bar.update(self._task, completed=progress.step, figures=figures)
        if self._live:
            self._live.update(Group(self._bar, gradient_bars(progress.grad_norms)))

    def epoch_ended(self, end: EpochEnd) -> None:
        """Remember the test accuracy for the next picture."""
        self._test = f"  test {end.test_accuracy:.0%}"

    def closed(self) -> None:
        """Take the screen down; the results follow."""
        if self._live:
            self._live.stop()


def gradient_bars(norms: np.ndarray) -> Text:
    """Bars of log10 gradient norm, input on the left; `x` where it is not finite, `0` where zero.

    Args:
        norms: weight-gradient norm of each layer, [layers].
    """
    chosen = np.unique(np.linspace(0, len(norms) - 1, min(len(norms), WIDEST)).round()).astype(int)
    values = [float(norms[index]) for index in chosen]
    logs = [math.log10(value) for value in values if 0 < value < math.inf]
    low, high = (math.floor(min(logs)), math.ceil(max(logs))) if logs else (-1, 0)
    low -= low == high
    columns = [_column(value, low, high) for value in values]
    labels = [f"1e{high:+d}", *[""] * (HEIGHT - 2), f"1e{low:+d}"]
    lines = [
        f"{label:>6} {''.join(column[row] for column in columns)}"
        for row, label in enumerate(labels)
    ]
    title = "|gradient| of each layer, from the input to the readout"
    return Text("\n".join([title, *lines]), no_wrap=True)


def _column(value: float, low: int, high: int) -> str:
    """One bar from top to bottom."""
    if not 0 < value < math.inf:
        return " " * (HEIGHT - 1) + ("0" if value == 0 else "x")
    eighths = 1 + round((HEIGHT * 8 - 1) * (math.log10(value) - low) / (high - low))
    return "".join(BLOCKS[min(8, max(0, eighths - 8 * row))] for row in reversed(range(HEIGHT)))
