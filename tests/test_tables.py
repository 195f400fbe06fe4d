"""The data dictionary, word by word, and how measured values become rows of its tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradexp.errors import RunError
from gradexp.nn.observed import Observed
from gradexp.probes import ProbeRows
from gradexp.probes.steps import StepValues
from gradexp.recorder import Recording, StepTimes, write_layers
from gradexp.records import TABLES, Column, RunDir, Table

DICTIONARY = Path(__file__).parent / "data" / "dictionary.txt"


def described(table: Table) -> Iterator[str]:
    """A file, then its columns: `?` may be empty, `~` is a time, `(unit)`, `[source]`."""
    yield f"{table.file_name}: {table.meaning}"
    for column in table.columns:
        marks = "?" * column.optional + "~" * column.timing
        unit = f"({column.unit})" if column.unit else ""
        source = f" [{column.source}]" if column.source else ""
        words = " ".join(filter(None, (column.name, column.dtype, marks, unit)))
        yield f"    {words}: {column.meaning}{source}"


def test_the_dictionary_is_this_one() -> None:
    """What a column holds is a promise: whoever changes one changes the file by hand."""
    lines = [line for table in TABLES.values() for line in described(table)]
    assert lines == DICTIONARY.read_text().splitlines()
    assert list(TABLES) == [table.name for table in TABLES.values()]


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_everything_in_it_says_what_it_means(table: Table) -> None:
    assert table.file_name == f"{table.name}.csv"
    assert len(table.meaning) > 15
    assert all(len(column.meaning) > 10 for column in table.columns)
    assert len(set(table.column_names)) == len(table.columns)
    for column in table.columns:
        assert table.column(column.name) is column


THINGS = Table(
    "things",
    "Things.",
    (Column("a", "int", "needed"), Column("b", "float", "maybe", optional=True)),
)


def test_a_row_is_put_in_the_order_of_the_columns() -> None:
    assert THINGS.cells({"b": 2.0, "a": 1}) == [1, 2.0]
    assert THINGS.cells({"a": 0}) == [0, None]  # 0 is a value
    assert THINGS.cells({"a": 0, "b": None}) == [0, None]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": 1, "c": 2}, r"things\.csv: no column 'c'; there are \['a', 'b'\]"),
        ({"b": 1.0}, r"things\.csv: a row without 'a'"),
        ({"a": None}, r"things\.csv: a row without 'a'"),
        ({}, r"things\.csv: a row without 'a'"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        THINGS.cells(row)


def test_columns_of_ones_own_come_last() -> None:
    more = THINGS.with_columns([Column("c", "float", "mine"), Column("d", "float", "mine")])
    assert more.column_names == ["a", "b", "c", "d"]
    assert (more.name, more.meaning) == ("things", "Things.")
    assert THINGS.column_names == ["a", "b"]
    assert THINGS.with_columns([]) == THINGS
    with pytest.raises(RunError, match="things: a column 'a' is there already"):
        THINGS.with_columns([Column("new", "float", "mine"), Column("a", "float", "mine")])


# --- rows of a run -------------------------------------------------------------------------------


def a_layer(name: str = "fc", *, bias: bool = True) -> Observed:
    weight = torch.tensor([[3.0, -1.0], [1.0, 1.0]], requires_grad=True)
    offset = (torch.zeros(2, requires_grad=True),) if bias else ()
    return Observed(name, "linear", 2, 2, 2, (weight,), offset)


def values(*losses: float, updates: int | None = None) -> StepValues:
    """Step i, from 0, has accuracy i / 10, total 10 + i, coefficient 1; layers have i + 0.25 ..."""
    count = len(losses)
    scalars = np.array([[loss, i / 10, 10 + i, 1.0] for i, loss in enumerate(losses)])
    layers = np.array([[[i + 0.25 + k] for k in range(5)] for i in range(count)])
    return StepValues(scalars, layers, count if updates is None else updates)


def times(first: int, seconds: float = 1.0, per_epoch: int = 4) -> StepTimes:
    return StepTimes(first, lambda step: step // per_epoch + 1, lambda step: step / 100, seconds)


def a_recording(
    folder: Path, every: int = 1, state: dict[str, Any] | None = None, **added: Sequence[Column]
) -> tuple[RunDir, Recording]:
    folder.mkdir(exist_ok=True)
    run = RunDir(folder)
    return run, Recording(
        run, [a_layer(), a_layer("out", bias=False)][:1], every, state or {}, added
    )


def test_steps_and_epochs_as_rows(tmp_path: Path) -> None:
    run, recording = a_recording(tmp_path)
    with recording:
        recording.steps(values(1.0, 3.0, 5.0), times(2, seconds=6.0))  # two of epoch 1, one of 2
        recording.add_seconds(1, 0.5)
        assert recording.epoch(1, 4, (7.0, 0.75)) == (2.0, pytest.approx(0.05))
        recording.steps(values(8.0), times(5, seconds=1.0))
        assert recording.epoch(2, 6, (6.0, 0.5)) == (6.5, pytest.approx(0.1))
    assert run.table_path("steps").read_text().splitlines()[1:] == [
        "2,1,1,0,0.02,10,1,2",
        "3,1,3,0.1,0.03,11,1,2",
        "4,2,5,0.2,0.04,12,1,2",
        "5,2,8,0,0.05,10,1,1",
    ]
    assert run.table_path("epochs").read_text().splitlines()[1:] == [
        "1,4,2,0.05,7,0.75,4.5",
        "2,6,6.5,0.1,6,0.5,3",
    ]


def test_gradients_as_rows(tmp_path: Path) -> None:
    run, recording = a_recording(tmp_path)
    with recording:
        recording.steps(values(1.0, 1.0, updates=1), times(3))
    assert run.table_path("gradients").read_text().splitlines()[1:] == [
        "3,1,fc,0.25,1.25,2.25,3.25,4.25",
        "4,1,fc,1.25,2.25,3.25,4.25,",  # ended without an update
    ]


def test_what_nobody_told_is_empty_and_counts_as_nan(tmp_path: Path) -> None:
    run, recording = a_recording(tmp_path)
    untold = StepValues(
        np.array([[math.nan, math.nan, 2.0, 1.0]]), np.ones((1, 5, 1)), 1, False, frozenset({0})
    )
    with recording:
        recording.steps(untold, StepTimes(0, lambda _: 1, lambda _: None, 0.0))
        loss, accuracy = recording.epoch(1, 1, (1.0, 0.5))
    assert math.isnan(loss)
    assert accuracy == 0.0
    assert run.table_path("steps").read_text().splitlines()[1] == "0,1,,,,2,1,0"


def steps_of(run: RunDir) -> list[int]:
    return run.read("gradients")["step"].tolist()


def test_thinned_gradients_wait_until_nothing_can_happen_to_them(tmp_path: Path) -> None:
    run, recording = a_recording(tmp_path, every=10)
    with recording:
        recording.steps(values(*[1.0] * 50), times(0))
        assert steps_of(run) == []  # the newest 50 wait
        recording.steps(values(*[1.0] * 11), times(50))
        assert steps_of(run) == [0, 10]  # 0 to 10 are out of reach
        recording.finish()
        assert steps_of(run) == [0, 10, 20, 30, 40, 50, 60]
        recording.finish()
    assert steps_of(run) == [0, 10, 20, 30, 40, 50, 60]


def test_an_event_brings_the_fifty_steps_before_it(tmp_path: Path) -> None:
    run, recording = a_recording(tmp_path, every=10)
    with recording:
        recording.steps(values(*[1.0] * 100), times(0))
        recording.event = 98
        recording.steps(values(*[1.0] * 21), times(100))
        recording.finish()
    assert steps_of(run) == [*range(0, 50, 10), *range(50, 99), 100, 110, 120]


def test_each_step_is_written_at_once_unless_thinned(tmp_path: Path) -> None:
    run, recording = a_recording(tmp_path)
    with recording:
        recording.steps(values(1.0, 1.0), times(0))
        assert steps_of(run) == [0, 1]
        assert recording.state()["waiting"] == []


def test_a_recording_goes_on_from_its_state(tmp_path: Path) -> None:
    def first(recording: Recording) -> None:
        recording.steps(values(*[2.0] * 70), times(0, per_epoch=100))
        recording.event = 65

    def second(recording: Recording) -> None:
        recording.steps(values(*[4.0] * 30), times(70, per_epoch=100))
        recording.epoch(1, 100, (1.0, 0.5))
        recording.finish()

    whole, recording = a_recording(tmp_path / "whole", every=10)
    with recording:
        first(recording)
        second(recording)
    parts, recording = a_recording(tmp_path / "parts", every=10)
    with recording:
        first(recording)
        state = recording.state()
        recording.steps(values(9.0, 9.0), times(70))  # lost: written after the checkpoint
        recording.epoch(1, 1, (9.0, 9.0))
    assert state["offsets"]["steps"] < parts.table_path("steps").stat().st_size
    _, again = a_recording(tmp_path / "parts", 10, state)
    with again:
        second(again)
    for name in TABLES:
        if name != "layers":
            assert parts.table_path(name).read_bytes() == whole.table_path(name).read_bytes(), name
    assert whole.read("epochs")["train_loss"].tolist() == [(70 * 2.0 + 30 * 4.0) / 100]


def test_a_state_is_no_part_of_what_goes_on(tmp_path: Path) -> None:
    _, recording = a_recording(tmp_path)
    with recording:
        recording.steps(values(1.0), times(0))
        state = recording.state()
        recording.steps(values(1.0), times(1))
    assert state["epoch_sums"] == {1: [1.0, 0.0, 1, 1.0]}


def test_probes_as_rows_with_columns_of_ones_own(tmp_path: Path) -> None:
    mine = [Column("post_max", "float", "the largest output")]
    run, recording = a_recording(tmp_path, signal=mine)
    key = {"step": 3, "layer_index": 1, "layer": "fc"}
    with recording:
        recording.probe(
            ProbeRows(
                [{**key, "pre_std": 0.5, "post_max": 9.0}],
                [{**key, "units": 2, "dead": 1}],
                [{**key, "unit": 1, "event": "died"}],
            )
        )
    assert run.read("signal")[["step", "pre_std", "post_max"]].to_numpy().tolist() == [[3, 0.5, 9]]
    assert run.read("units")[["step", "units", "dead"]].to_numpy().tolist() == [[3, 2, 1]]
    assert run.read("unit_events")[["unit", "event"]].to_numpy().tolist() == [[1, "died"]]
    assert run.empty_cells("units", "revived").tolist() == [True]


def test_layers_as_rows(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_layers(run, [a_layer(), a_layer("out", bias=False)])
    spread = math.sqrt(3 - 1)  # of 3, -1, 1, 1: mean 1, mean square 3
    rows = run.table_path("layers").read_text().splitlines()[1:]
    assert rows == [
        f"1,fc,linear,2,2,2,6,none,none,,,,{spread:.9g}",
        f"2,out,linear,2,2,2,4,none,none,,,,{spread:.9g}",
    ]
