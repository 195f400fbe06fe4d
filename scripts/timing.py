"""What the benchmarks share: fair rounds of many sides, ratios, and the conditions they hold in."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table

Times = dict[str, list[float]]


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median_ratio(times: Times, side: str, base: str) -> float:
    """Median over rounds of side / base: what slows a whole round down cancels."""
    rounds = zip(times[side], times[base], strict=True)
    return statistics.median(one / other for one, other in rounds)


def conditions() -> str:
    """The machine and the versions, in one line."""
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} threads, "
        f"torch {torch.__version__.split('+')[0]}, Python {platform.python_version()}"
    )


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; the first column names the side, the others are numbers."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=100).print(table)
