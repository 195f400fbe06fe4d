"""Files at every moment of their writing, odd contents, and what reading makes of odd files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradexp.errors import RunError
from gradexp.records import (
    Column,
    Table,
    TableWriter,
    read_json,
    read_table,
    write_atomically,
    write_json,
)
from gradexp.records.files import empty_cells
from tests.torn import At, Disk, Event, fill_up, interrupt

TABLE = Table(
    "sizes",
    "Sizes.",
    (
        Column("step", "int", "a step"),
        Column("name", "text", "a name"),
        Column("size", "float", "a size", optional=True),
        Column("count", "int", "a count", optional=True),
    ),
)
HEADER = "step,name,size,count\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sizes.csv"


# --- while they are written ----------------------------------------------------------------------


def test_whoever_reads_a_file_that_is_replaced_sees_the_old_one_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    seen: list[tuple[str, str, bytes]] = []

    def look(event: Event) -> None:
        seen.append((event.kind, event.path.name, path.read_bytes()))

    with Disk(tmp_path, look):
        write_atomically(path, b"new and longer")
    temporary = {name for kind, name, _ in seen if kind != "replace"}
    assert [kind for kind, _, _ in seen] == ["open", "write", "fsync", "replace"]
    assert {content for *_, content in seen} == {b"old"}
    assert len(temporary) == 1
    assert path.name not in temporary
    assert path.read_bytes() == b"new and longer"


@pytest.mark.parametrize("kind", ["open", "write", "fsync", "replace"])
def test_a_disk_that_fills_up_costs_only_what_is_new(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"old")
    with (
        Disk(tmp_path, At(0, kind, "state.json", fill_up)),
        pytest.raises(RunError, match=r"state\.json: cannot be written: No space left on device"),
    ):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "state", tmp_path / "nowhere" / "state"):
        with pytest.raises(
            RunError, match=r"state: cannot be written: (Not a|No such file or) directory$"
        ):
            write_atomically(path, b"x")
        with pytest.raises(
            RunError, match=r"state: cannot be written: (Not a|No such file or) directory$"
        ):
            TableWriter(path, TABLE)


def test_rows_appear_whole_and_in_order(path: Path) -> None:
    """Half of a write is on the disk each time somebody looks: at most its last line is missing."""
    seen: list[list[int]] = []
    with Disk(
        path.parent, lambda event: seen.append(read_table(event.path, TABLE)["step"].tolist())
    ):
        writer = TableWriter(path, TABLE)
        for step in (1, 2, 3):
            writer.append([{"step": step, "name": "x" * 20}])
        writer.sync()
        writer.close()
    assert seen == [[], [], [], [1], [1, 2], [1, 2, 3]]


def test_nothing_appended_is_nothing_written(path: Path) -> None:
    writer = TableWriter(path, TABLE)
    writer.append([])
    writer.append_text("")
    writer.append({"step": step, "name": "a"} for step in (4, 5))  # any iterable, once
    writer.close()
    assert path.read_text() == HEADER + "4,a,,\n5,a,,\n"


def test_of_rows_that_do_not_fit_none_is_written(path: Path) -> None:
    writer = TableWriter(path, TABLE)
    with pytest.raises(RunError, match=r"sizes\.csv: a row without 'name'"):
        writer.append([{"step": 1, "name": "a"}, {"step": 2, "name": None}])
    writer.close()
    assert path.read_text() == HEADER


def test_an_interrupt_amid_a_write_is_not_swallowed(path: Path) -> None:
    writer = TableWriter(path, TABLE)
    offset = writer.offset
    with (
        Disk(path.parent, At(0, "write", "manifest.json", interrupt)),
        pytest.raises(KeyboardInterrupt),
    ):
        write_json(path.with_name("manifest.json"), {"a": 1})
    writer.append_text("1,half")
    writer.close()
    again = TableWriter(path, TABLE, offset)
    assert again.offset == offset == len(HEADER)
    again.close()
    assert path.read_text() == HEADER


# --- odd contents --------------------------------------------------------------------------------


def test_json_is_laid_out_for_people(path: Path) -> None:
    write_json(path, {"b": [1, (2.5, float("nan"))], "a": {"deep": float("-inf")}, "ü": None})
    assert path.read_bytes().decode() == (
        '{\n  "b": [\n    1,\n    [\n      2.5,\n      "nan"\n    ]\n  ],\n'
        '  "a": {\n    "deep": "-inf"\n  },\n  "\\u00fc": null\n}\n'
    )
    assert read_json(path) == {"b": [1, [2.5, "nan"]], "a": {"deep": "-inf"}, "ü": None}


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"{'a': 1}"])
def test_bytes_that_are_no_json_are_an_error_of_ours(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"sizes\.csv: is not valid JSON: "):
        read_json(path)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("a,b", '"a,b"'),
        ('5"', '"5"""'),
        ("a\rb", '"a\rb"'),
        ("a\nb", '"a\nb"'),
        ("a b;'c'", "a b;'c'"),
    ],
)
def test_each_mark_that_would_break_a_row_is_quoted(path: Path, name: str, field: str) -> None:
    writer = TableWriter(path, TABLE)
    writer.append([{"step": 1, "name": name}])
    writer.close()
    assert path.read_bytes().decode() == HEADER + f"1,{field},,\n"
    assert read_table(path, TABLE)["name"].tolist() == [name]


@given(names=st.lists(st.text(st.sampled_from("ab \",'\n;%#ä0-"), max_size=6), min_size=1))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "texts.csv"
    writer = TableWriter(path, TABLE)
    writer.append([{"step": step, "name": name} for step, name in enumerate(names)])
    writer.close()
    frame = read_table(path, TABLE)
    assert frame["name"].tolist() == names
    assert frame["step"].tolist() == list(range(len(names)))


def test_integers_stay_integers_to_the_last_digit(path: Path) -> None:
    large = 2**53 + 1  # no float64 holds it
    writer = TableWriter(path, TABLE)
    rows: list[dict[str, Any]] = [
        {"step": large, "name": "", "count": large},
        {"step": np.int64(2), "name": "", "count": None},
        {"step": -3, "name": "", "count": 0},
    ]
    writer.append(rows)
    writer.close()
    assert path.read_text() == HEADER + f"{large},,,{large}\n2,,,\n-3,,,0\n"
    frame = read_table(path, TABLE)
    assert frame["step"].tolist() == [large, 2, -3]
    assert frame["count"].dropna().tolist() == [large, 0]


def test_signs_of_zeros_and_infinities_are_kept(path: Path) -> None:
    values = [-0.0, float("inf"), float("-inf"), 5e-324, 1.7e308]
    writer = TableWriter(path, TABLE)
    writer.append([{"step": 0, "name": "", "size": value} for value in values])
    writer.close()
    assert path.read_text().split() == [
        HEADER.strip(), "0,,-0,", "0,,inf,", "0,,-inf,", "0,,4.94065646e-324,", "0,,1.7e+308,",
    ]  # fmt: skip
    back = read_table(path, TABLE)["size"].tolist()
    assert back == values
    assert np.signbit(back).tolist() == [True, False, True, False, False]


# --- odd files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["", "1\n2\n"])
def test_what_an_old_file_lacks_has_its_type_all_the_same(path: Path, rows: str) -> None:
    path.write_text("step\n" + rows)
    frame = read_table(path, TABLE)
    assert len(frame) == rows.count("\n")
    kinds = [str(kind) for kind in frame.dtypes]
    assert kinds == ["int64", str(pd.Series(["x"], dtype="str").dtype), "float64", "Int64"]


@pytest.mark.parametrize(
    "content",
    [
        HEADER + "1,a,0.5,3\n2,b,0.5,3,9\n",  # too wide
        "step,name,size,mine\n1,a,0.5,word\n",  # a column of one's own holds numbers
        HEADER + "1,a,wide,3\n",
        HEADER + "1,a,0.5,3.5\n",
        HEADER + ",a,0.5,3\n",
    ],
)
def test_a_table_that_is_none_is_named(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(RunError, match=r"sizes\.csv: is damaged: "):
        read_table(path, TABLE)


@pytest.mark.parametrize(
    "read", [lambda path: read_table(path, TABLE), lambda path: empty_cells(path, TABLE, "size")]
)
def test_a_folder_in_a_files_place_is_named(path: Path, read: Callable[[Path], object]) -> None:
    path.mkdir()
    with pytest.raises(RunError, match=r"sizes\.csv: cannot be read: Is a directory"):
        read(path)


def test_an_empty_cell_is_told_from_a_measured_nan(path: Path) -> None:
    path.write_text("step,name,size\n1,,nan\n2,b,\n3,c,0\n4,d,1")  # the last line is cut short
    assert read_table(path, TABLE)["size"].isna().tolist() == [True, True, False]
    assert empty_cells(path, TABLE, "size").tolist() == [False, True, False]
    assert empty_cells(path, TABLE, "name").tolist() == [True, False, False]
    assert empty_cells(path, TABLE, "step").tolist() == [False, False, False]
    assert empty_cells(path, TABLE, "count").tolist() == [True, True, True]  # not in the file
    assert empty_cells(path.with_name("none.csv"), TABLE, "size").tolist() == []
