"""What is seen while a sweep works: one bar for all cells, one line a worker, failures at once."""

from __future__ import annotations

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from gradexp.analysis import counted
from gradexp.sweeps.events import Began, Ended, Event, Lost, Moved
from gradexp.sweeps.table import RunTable

SECONDS_BETWEEN_LINES = 5.0


class View:
    """Hears of a sweep's progress; this one shows nothing."""

    def opened(self, cells: int) -> None:
        """So many cells are about to be carried out."""

    def told(self, event: Event, table: RunTable) -> None:
        """Something happened; the table knows it already."""

    def closed(self) -> None:
        """Nothing more will happen."""


def sweep_view(console: Console) -> View:
    """The live view on a terminal, plain lines elsewhere."""
    return LiveView(console) if console.is_terminal else PlainView(console)


class PlainView(View):
    """A line for every failure and loss, and one now and then for the rest; no control codes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done = self._total = 0

    def opened(self, cells: int) -> None:
        """Say how many cells are to be carried out."""
        self._total, self._began = cells, time.monotonic()
        self._said_at = self._began
        self.say(f"{counted(cells, 'cell')} to run")

    def told(self, event: Event, table: RunTable) -> None:
        """Say what went wrong; count what is done."""
        if isinstance(event, Lost):
            self.say(f"retry {event.cell.run} ({event.cell}): {event.reason}")
        if isinstance(event, Ended):
            self._done += 1
            if event.error:
                error = table.rows[event.cell.run]["error"]
                self.say(f"failed {event.cell.run} ({event.cell}): {error}")
        last = isinstance(event, Ended) and self._done == self._total
        if last or time.monotonic() - self._said_at > SECONDS_BETWEEN_LINES:
            self.progress()

    def progress(self) -> None:
        """Say how far the sweep is."""
        self.say(f"{self._done}/{self._total} cells done, {self.remaining()}")

    def remaining(self) -> str:
        """The time that is left if the remaining cells are like those that ended."""
        elapsed = time.monotonic() - self._began
        if not self._done:
            return f"{duration(elapsed)} so far"
        left = elapsed / self._done * (self._total - self._done)
        return f"{duration(left)} left" if left else f"took {duration(elapsed)}"

    def say(self, line: str) -> None:
        """One line that stays."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._said_at = time.monotonic()


class LiveView(PlainView):
    """The same, with a bar and one line a worker below it while the sweep works."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._workers: dict[str, str] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )

    def opened(self, cells: int) -> None:
        """Draw the empty bar."""
        super().opened(cells)
        self._task = self._bar.add_task("cells", total=cells, left="starting workers")
        self._live = Live(
            get_renderable=self._picture,
            console=self._console,
            refresh_per_second=8,
            transient=True,
        )
        self._live.start()

    def told(self, event: Event, table: RunTable) -> None:
        """Keep the line of the worker, and the bar."""
        super().told(event, table)
        if isinstance(event, Began):
            self._workers[event.worker] = f"{event.cell}  starting"
        elif isinstance(event, Moved):
            done = f"step {event.step}/{event.total}  loss {event.loss:.3g}"
            self._workers[event.worker] = f"{event.cell}  {done}"
        elif isinstance(event, Ended | Lost):
            self._workers.pop(event.worker, None)

    def progress(self) -> None:
        """The bar says it."""

    def _picture(self) -> RenderableType:
        self._bar.update(self._task, completed=self._done, left=self.remaining())
        lines = [Text(f"{worker:>3}  {line}", no_wrap=True) for worker, line in self._lines()]
        return Group(self._bar, *lines)

    def _lines(self) -> list[tuple[str, str]]:
        return sorted(self._workers.items(), key=lambda item: (len(item[0]), item[0]))

    def closed(self) -> None:
        """Take the picture down."""
        self._live.stop()
        super().progress()


def duration(seconds: float) -> str:
    """A time in the unit that fits: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004  seconds of a minute
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004  seconds of an hour
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
