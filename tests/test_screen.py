"""The live view: figures on one line, one bar per layer, nothing left behind."""

from __future__ import annotations

import io
import math

import numpy as np
from rich.console import Console

from gradexp.cli.screen import HEIGHT, WIDEST, gradient_bars, screen
from gradexp.train import EpochEnd, Progress, Start

FIRST_EPOCH = EpochEnd(1, 50, 2.5, 0.125, 2.0, 0.5, 0.01)


def columns(norms: list[float]) -> list[str]:
    """The bars, read from top to bottom."""
    lines = gradient_bars(np.array(norms)).plain.splitlines()[1:]
    rows = [line[7:].ljust(len(norms)) for line in lines]
    return ["".join(column) for column in zip(*rows, strict=True)]


def test_bars_rise_with_the_logarithm() -> None:
    heights = [len(column.strip()) for column in columns([1e-10, 1e-5, 1.0])]
    assert heights == [1, math.ceil(HEIGHT / 2), HEIGHT]


def test_scale_is_labelled_in_decades() -> None:
    lines = gradient_bars(np.array([3e-7, 2.0])).plain.splitlines()
    assert lines[1].strip().startswith("1e+1")
    assert lines[-1].strip().startswith("1e-7")


def test_zero_and_non_finite_are_marked() -> None:
    bars = columns([0.0, math.nan, math.inf, 1.0, 0.1])
    assert [bar[-1] for bar in bars[:3]] == ["0", "x", "x"]
    assert columns([0.0, math.nan]) == [" " * (HEIGHT - 1) + "0", " " * (HEIGHT - 1) + "x"]


def test_a_thousand_layers_fit() -> None:
    lines = gradient_bars(np.logspace(-9, 0, 1000)).plain.splitlines()
    assert max(map(len, lines)) <= WIDEST + 7


def test_live_view_on_a_terminal_ends_clean() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100)
    view = screen(console)
    view.started(Start("net", ["a", "b"], 100, 50, 0))
    view.epoch_ended(FIRST_EPOCH)
    view.progressed(Progress(50, 2.25, 0.125, np.array([1e-3, 1.0])))
    view.progressed(Progress(60, 2.0, 0.25, np.array([1e-3, 1.0])))
    view.closed()
    text = output.getvalue()
    assert "epoch 2  loss 2 " in text
    assert "test 50%" in text
    assert text.endswith("\x1b[2K")  # the last thing it does is to erase itself


def test_plain_lines_without_a_terminal() -> None:
    output = io.StringIO()
    view = screen(Console(file=output, width=40))
    view.started(Start("net", ["a"], 100, 50, 0))
    view.epoch_ended(FIRST_EPOCH)
    view.progressed(Progress(50, 2.25, 0.125, np.array([1.0])))
    view.closed()
    assert output.getvalue().splitlines() == [
        "net: 1 layers, 100 steps",
        "epoch 1, step 50/100, loss 2.5, accuracy 12.5%, test loss 2, accuracy 50.0%",
    ]
