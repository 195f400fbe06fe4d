"""Where commands write: results on stdout, progress and messages on stderr."""

from __future__ import annotations

from rich.console import Console

UNLIMITED = 10_000  # columns


def results() -> Console:
    """As wide as the terminal; where there is none, nothing is wrapped or cut."""
    console = Console()
    if not console.is_terminal:
        console.width = UNLIMITED
    return console


def progress() -> Console:
    """What a user follows, and no program reads."""
    return Console(stderr=True)
