"""What is on disk: written in an order that survives a kill, and read as far as it is whole."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradexp.errors import RunError
from gradexp.records import (
    TABLES,
    Column,
    RunDir,
    Table,
    TableWriter,
    is_locked,
    lock_file,
    read_json,
    read_table,
    write_atomically,
    write_json,
)

TABLE = Table(
    "things",
    "Things.",
    (
        Column("step", "int", "a step"),
        Column("name", "text", "a name"),
        Column("size", "float", "a size"),
        Column("count", "int", "a count", optional=True),
    ),
)
HEADER = "step,name,size,count\n"


# --- files that are replaced as a whole ----------------------------------------------------------


class Recorder:
    """Notes what is done to files, in order, and does it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.fail: str | None = None
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", self._noting("fsync", fsync))
        monkeypatch.setattr(os, "replace", self._noting("replace", replace))

    def _noting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if name == "fsync":
                size = os.fstat(arguments[0]).st_size
                self.calls.append(f"fsync of {size} bytes")
            else:
                self.calls.append(f"replace {Path(arguments[1]).name}")
            if self.fail == name:
                raise OSError(28, "No space left on device")
            return function(*arguments)

        return call


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def test_a_file_reaches_the_disk_before_it_takes_its_name(
    tmp_path: Path, recorder: Recorder
) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new content")
    assert recorder.calls == [
        *("fsync of 3 bytes", "replace file.json", "fsync of 11 bytes", "replace file.json")
    ]
    assert path.read_bytes() == b"new content"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, recorder: Recorder, at: str
) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, b"old")
    recorder.fail = at
    with pytest.raises(RunError, match=r"file\.json: cannot be written: No space left on device"):
        write_atomically(path, b"new content")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_processes_that_write_one_file_do_not_share_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(Path, "replace", lambda one, target: seen.append((one, target)))
    write_atomically(tmp_path / "file.json", b"x")
    ((temporary, target),) = seen
    assert target == tmp_path / "file.json"
    assert temporary == tmp_path / f".file.json.{os.getpid()}.tmp"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@given(content=PLAIN)
def test_json_is_strict_and_comes_back(
    tmp_path_factory: pytest.TempPathFactory, content: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "content.json"
    write_json(path, content)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads(path.read_text(), parse_constant=refuse)
    assert read_json(path) == as_text(content)


def as_text(value: Any) -> Any:
    """JSON has no numbers that are not finite: they are told in words."""
    if isinstance(value, dict):
        return {key: as_text(one) for key, one in value.items()}
    if isinstance(value, list):
        return [as_text(one) for one in value]
    return value if not isinstance(value, float) or math.isfinite(value) else f"{value}"


def test_what_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(RunError, match=r"half\.json: is not valid JSON: "):
        read_json(tmp_path / "half.json")
    with pytest.raises(RunError, match=r"none\.json: cannot be read: No such file"):
        read_json(tmp_path / "none.json")


# --- tables that grow ----------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "things.csv"


@pytest.fixture
def writer(path: Path) -> Iterator[TableWriter]:
    made = TableWriter(path, TABLE)
    yield made
    made.close()


def test_rows_are_on_their_way_to_the_disk_at_once(path: Path, writer: TableWriter) -> None:
    """Another process sees them: a kill of this one costs none."""
    writer.append([{"step": 1, "name": "a", "size": 0.5, "count": 3}])
    assert path.read_text() == HEADER + "1,a,0.5,3\n"
    assert writer.offset == len(path.read_text())
    writer.append_text("2,b,1,\n")
    assert path.read_text().splitlines()[2] == "2,b,1,"


def test_sync_waits_for_the_disk(writer: TableWriter, recorder: Recorder) -> None:
    writer.append_text("2,b,1,\n")
    assert recorder.calls == []
    writer.sync()
    assert recorder.calls == [f"fsync of {len(HEADER) + 7} bytes"]


def test_a_write_that_takes_only_a_part_goes_on(
    path: Path, writer: TableWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        """A file that takes three bytes at a time."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, content: Any) -> int:
            return int(self._file.write(content[:3]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    monkeypatch.setattr(writer, "_file", Slow(writer._file))
    writer.append_text("12,a long name,0.25,\n")
    assert path.read_text() == HEADER + "12,a long name,0.25,\n"
    assert writer.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_full_disk_is_an_error_of_ours(
    writer: TableWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, _content: Any) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            """Nothing is left to write."""

    writer._file.close()
    monkeypatch.setattr(writer, "_file", Full())
    with pytest.raises(RunError, match=r"things\.csv: cannot be written: No space left"):
        writer.append_text("1,a,1,1\n")


def test_a_writer_goes_on_behind_the_bytes_it_is_told(path: Path, writer: TableWriter) -> None:
    writer.append_text("1,a,1,1\n")
    offset = writer.offset
    writer.append_text("2,lost,2,2\n3,half")
    writer.close()
    again = TableWriter(path, TABLE, offset)
    again.append_text("2,b,2,2\n")
    again.close()
    assert path.read_text() == HEADER + "1,a,1,1\n2,b,2,2\n"
    anew = TableWriter(path, TABLE)
    anew.close()
    assert path.read_text() == HEADER


def test_a_row_must_fit_the_dictionary(writer: TableWriter) -> None:
    good = {"step": 1, "name": "a", "size": 1.0}
    writer.append([good])
    with pytest.raises(RunError, match="sise"):
        writer.append([{**good, "sise": 2.0}])
    with pytest.raises(RunError, match="name"):
        writer.append([{"step": 1, "size": 1.0}])
    with pytest.raises(RunError, match="things: a column 'size' is there already"):
        TABLE.with_columns([TABLE.columns[2]])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (3, "3"),
        (0.1, "0.1"),
        (1 / 3, "0.333333333"),
        (1e-30, "1e-30"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        ("plain", "plain"),
        ('a "b", c', '"a ""b"", c"'),
        ("two\nlines", '"two\nlines"'),
    ],
)
def test_a_value_as_a_field(path: Path, writer: TableWriter, value: Any, text: str) -> None:
    """Nine digits bring every float32 back exactly."""
    column = "name" if isinstance(value, str) else "size"
    if value is None:
        column = "count"
    row = {"step": 1, "name": "x", "size": 1.0, column: value}
    writer.append([row])
    fields = {"step": "1", "name": "x", "size": "1", "count": ""} | {column: text}
    assert path.read_text() == HEADER + ",".join(fields.values()) + "\n"


@given(value=st.floats(width=32, allow_nan=False))
def test_every_float32_comes_back(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    path = tmp_path_factory.getbasetemp() / "floats.csv"
    writer = TableWriter(path, TABLE)
    writer.append([{"step": 0, "name": "", "size": value}])
    writer.close()
    assert np.float32(read_table(path, TABLE)["size"][0]) == np.float32(value)


# --- reading -------------------------------------------------------------------------------------


def test_a_table_comes_back_in_its_types(path: Path) -> None:
    path.write_text(HEADER + "1,nan,nan,\n2,,inf,5\n3,NA,,7\n")
    frame = read_table(path, TABLE)
    assert list(frame.columns) == TABLE.column_names
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        "step": "int64",
        "name": str(pd.Series(["x"], dtype="str").dtype),
        "size": "float64",
        "count": "Int64",
    }
    assert list(frame["name"]) == ["nan", "", "NA"]  # words of a user's are no gaps
    assert list(frame["size"].isna()) == [True, False, True]
    assert math.isinf(frame["size"][1])
    assert frame["count"].isna().tolist() == [True, False, False]
    assert frame["count"][1] == 5


@pytest.mark.parametrize("cut", range(1, 8))
def test_half_a_last_line_is_left_out(path: Path, cut: int) -> None:
    last = "2,b,2.5,4\n"
    path.write_text(HEADER + "1,a,1.5,3\n" + last[:-cut])
    assert read_table(path, TABLE)["step"].tolist() == [1]


@pytest.mark.parametrize("content", [None, "", "step,na", HEADER])
def test_nothing_written_is_an_empty_table(path: Path, content: str | None) -> None:
    if content is not None:
        path.write_text(content)
    frame = read_table(path, TABLE)
    assert len(frame) == 0
    assert list(frame.columns) == TABLE.column_names


def test_columns_that_an_old_file_lacks_are_empty_and_others_come_last(path: Path) -> None:
    path.write_text("step,mine,size\n1,0.25,2\n2,,3\n")
    frame = read_table(path, TABLE)
    assert list(frame.columns) == [*TABLE.column_names, "mine"]
    assert list(frame["name"]) == ["", ""]
    assert frame["count"].isna().all()
    assert frame["mine"].tolist()[0] == 0.25
    assert frame["mine"].isna().tolist() == [False, True]


def test_a_damaged_table_is_named(path: Path) -> None:
    path.write_text(HEADER + "one,a,1,1\n")
    with pytest.raises(RunError, match=r"things\.csv: is damaged: "):
        read_table(path, TABLE)


# --- the run directory ---------------------------------------------------------------------------


def a_run(folder: Path) -> RunDir:
    run = RunDir(folder)
    run.make()
    run.write_manifest({"status": "running"})
    return run


def test_its_files_have_these_names(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert {name: path.name for name, path in vars(run).items() if name != "path"} == {
        "config": "config.yaml",
        "manifest": "manifest.json",
        "summary": "summary.json",
        "evidence": "evidence.json",
        "rules": "rules.yaml",
        "checkpoint": "checkpoint.pt",
        "traceback": "traceback.txt",
        "lock": ".lock",
    }
    assert {run.table_path(name).name for name in TABLES} == {f"{name}.csv" for name in TABLES}


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run directory \(no manifest.json\)"):
        RunDir.open(tmp_path)
    a_run(tmp_path)
    assert RunDir.open(tmp_path).path == tmp_path


def test_clearing_keeps_the_lock_that_is_held(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    run.checkpoint.mkdir()
    (run.checkpoint / "file").write_text("x")
    with run.locked():
        inode = run.lock.stat().st_ino
        run.clear()
        assert list(run.path.iterdir()) == [run.lock]
        assert run.lock.stat().st_ino == inode
        assert run.in_use()
    assert not run.in_use()
    assert tmp_path.is_dir()


def test_leftovers_of_a_killed_process_go_and_nothing_else(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    (tmp_path / ".summary.json.123.tmp").write_text("half")
    theirs = ["notes.tmp", ".summary.json.old.tmp", ".notes.txt.123.tmp", "summary.json.123.tmp"]
    for name in theirs:
        (tmp_path / name).write_text("a user's")
    run.remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", *theirs}


def test_only_one_process_works_on_a_run(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from gradexp.records import RunDir\n"
        "from gradexp.errors import RunError\n"
        "run = RunDir(Path(sys.argv[1]))\n"
        "print(run.in_use())\n"
        "try:\n    run.locked().__enter__()\nexcept RunError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with run.locked():
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"True\n{tmp_path}: another process is working on this run\n"
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "False\n"


def test_a_lock_that_is_only_looked_at_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    assert not path.exists()
    with lock_file(path, "taken"):
        assert is_locked(path)
        with pytest.raises(RunError, match="taken"), lock_file(path, "taken"):
            pass
    assert not is_locked(path)


@pytest.mark.parametrize(
    ("status", "summary", "done"),
    [
        ("running", {"steps": 1}, False),
        ("finished", {"steps": 1}, True),
        ("diverged", {"steps": 1}, True),
        ("failed", {"steps": 1}, False),
        ("finished", {}, False),
        ("finished", None, False),
    ],
)
def test_done_means_ended_with_a_summary(
    tmp_path: Path, status: str, summary: dict[str, Any] | None, *, done: bool
) -> None:
    run = a_run(tmp_path)
    run.write_manifest({"status": status})
    if summary is not None:
        run.write_summary(summary)
    assert run.done() == done
    run.manifest.write_text("{half")
    assert not run.done()
    assert run.status() is None


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written: Not a directory"):
        RunDir(tmp_path / "file" / "run").make()
    with (
        pytest.raises(RunError, match="cannot be written"),
        RunDir(tmp_path / "file" / "run").locked(),
    ):
        pass
