"""The program called in this process, and terminals that live in memory and show what was drawn.

Live displays draw here when a test asks for it, never by the clock.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console
from rich.live import Live

from gradexp.cli import main

WIDTH, HEIGHT = 100, 30
UNWANTED = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


@dataclass(frozen=True)
class Answer:
    """What the program ended with, and what it wrote on which stream."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        """Those of stdout, without the blanks that fill up columns."""
        return [line.rstrip() for line in self.stdout.splitlines()]


def call(
    *arguments: str | Path,
    width: int = WIDTH,
    stdout: io.StringIO | None = None,
    stderr: io.StringIO | None = None,
) -> Answer:
    """`gradexp ARGUMENTS...` in this process and folder; without a terminal, if none is given."""
    out, err = stdout or io.StringIO(), stderr or io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["gradexp", *map(str, arguments)]),
        surroundings(width),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        main()
    assert isinstance(end.value.code, int)
    return Answer(end.value.code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def surroundings(width: int = WIDTH, height: int = HEIGHT) -> Iterator[None]:
    """The environment of a terminal of that size, whatever that of the tests says."""
    size = {"COLUMNS": str(width), "LINES": str(height), "TERM": "xterm"}
    with mock.patch.dict(os.environ, size):
        for name in UNWANTED:
            os.environ.pop(name, None)
        yield


CODES = re.compile(r"\x1b\[(?P<private>\??)(?P<number>\d*)(?:;\d+)*(?P<code>[A-Za-z])")


@dataclass
class Screen:
    """The lines that a terminal shows, after all that was written to it; it never scrolls."""

    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0
    cursor: bool = True

    def write(self, text: str) -> None:
        """Print characters and obey control codes; an unknown one is a mistake of the test."""
        at = 0
        while at < len(text):
            found = CODES.match(text, at)
            if found:
                self._obey(found["private"] + found["code"], found["number"])
                at = found.end()
            else:
                self._print(text[at])
                at += 1

    def _obey(self, code: str, number: str) -> None:
        match code:
            case "A":
                self.row = max(0, self.row - int(number or 1))
            case "K":
                assert number == "2", "only whole lines are erased"
                self.lines[self.row] = ""
            case "?h" | "?l":
                assert number == "25", "only the cursor is hidden"
                self.cursor = code == "?h"
            case "m":
                pass
            case _:
                raise AssertionError(f"a terminal in memory knows no {code}")

    def _print(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.row, self.column = self.row + 1, 0
            self.lines += [""] * (self.row + 1 - len(self.lines))
        else:
            assert character.isprintable(), f"a control code in pieces: {character!r}"
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1


class Terminal(io.StringIO):
    """A stream that counts as a terminal of a fixed size."""

    def __init__(self, displays: list[Live], width: int = WIDTH, height: int = HEIGHT) -> None:
        super().__init__()
        self._displays = displays
        self.console = Console(
            file=self,
            force_terminal=True,
            color_system=None,
            width=width,
            height=height,
            get_time=_monotonic,
        )

    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> Screen:
        """What it shows now."""
        screen = Screen()
        screen.write(self.getvalue())
        return screen

    @property
    def seen(self) -> list[str]:
        """The lines that it shows now, without blanks at their ends and empty ones at the end."""
        return "\n".join(line.rstrip() for line in self.screen.lines).rstrip().splitlines()

    def drawn(self) -> list[str]:
        """What it shows when the live displays have drawn themselves anew."""
        assert self.live, "no display lives here"
        for display in self.live:
            display.refresh()
        return self.seen

    @property
    def live(self) -> list[Live]:
        """The displays that were begun and have not ended."""
        return [display for display in self._displays if display.is_started]


def _monotonic() -> float:
    """The time when it is asked for: a clock may have been put in its place."""
    return time.monotonic()


@pytest.fixture
def displays(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Live]]:
    """All live displays that are begun; they draw when they are told to."""
    begun: list[Live] = []
    start = Live.start

    def start_still(display: Live, refresh: bool = False) -> None:
        display.auto_refresh = False
        begun.append(display)
        start(display, refresh)

    monkeypatch.setattr(Live, "start", start_still)
    yield begun
    for display in begun:
        display.stop()


@pytest.fixture
def terminal(displays: list[Live]) -> Terminal:
    """A terminal in memory, of 100 columns and 30 lines."""
    return Terminal(displays)
