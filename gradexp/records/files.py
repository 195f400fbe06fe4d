"""Writing files that survive a kill, and reading files that did not."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gradexp.errors import RunError
from gradexp.records.tables import Column, Table, Value


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole: whoever reads it sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            # Without it a crash of the machine may leave the new name with none of the content.
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error


LEFTOVER = re.compile(r"\.(.+)\.\d+\.tmp")  # what `write_atomically` calls its temporary files


def remove_leftovers(folder: Path, names: Container[str]) -> None:
    """Remove half-written copies of files of these names, which a killed process left."""
    for path in folder.iterdir():
        if (found := LEFTOVER.fullmatch(path.name)) and found[1] in names:
            path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically; non-finite numbers are written as the text nan or inf."""
    write_atomically(path, (json.dumps(_plain(content), indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file; a missing or damaged one is a `RunError` that names it."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{path}: is not valid JSON: {error}") from error


def _plain(value: Any) -> Any:
    """JSON has no nan and no inf: they travel as text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value


class TableWriter:
    """Appends rows to one CSV file; what `append` returned from survives a kill of the process.

    `offset` continues a file after that many bytes: whatever stands behind them is cut off.
    """

    def __init__(self, path: Path, table: Table, offset: int = 0) -> None:
        self.path = path
        self._table = table
        try:
            # Unbuffered: what could not be written must not be tried again when the file closes.
            self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
            self._file.truncate(offset)
            self._digest = hashlib.file_digest(self._file, "sha256")
            self._file.seek(offset)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}") from error
        if offset == 0:
            with contextlib.ExitStack() as unless_written:
                unless_written.callback(self.close)
                self._write(",".join(table.column_names) + "\n")
                unless_written.pop_all()

    def append(self, rows: Iterable[Mapping[str, Value]]) -> None:
        """Add rows by column; None, or a column left out, is an empty field.

        Raises:
            RunError: the table has no such column, or needs one that is missing.
        """
        cells = self._table.cells
        self._write("".join([",".join(map(field_text, cells(row))) + "\n" for row in rows]))

    def append_text(self, lines: str) -> None:
        """Add rows that are formatted already, each line closed."""
        self._write(lines)

    def _write(self, text: str) -> None:
        content = memoryview(text.encode())
        try:
            while content:  # one write may take only a part: a signal came, or the disk is full
                written = self._file.write(content)
                self._digest.update(content[:written])
                content = content[written:]
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from error

    @property
    def offset(self) -> int:
        """Bytes written so far, header included."""
        return self._file.tell()

    @property
    def digest(self) -> str:
        """SHA-256 of all of them: whether they are still the same when a run goes on."""
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Wait until everything written has reached the disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


NUMBER = "%.9g"  # nine digits bring every float32 back exactly


def field_text(value: Value) -> str:
    """A value as a CSV field."""
    if value is None:
        return ""
    if isinstance(value, float):
        return NUMBER % value
    text = str(value)
    if any(mark in text for mark in ',"\n\r'):
        return '"' + text.replace('"', '""') + '"'
    return text


def read_table(path: Path, table: Table) -> pd.DataFrame:
    """One table as a frame with the dictionary's columns and types.

    A missing file is an empty frame; a last line cut short by a kill is left out. `nan` and `inf`
    stay what they are, empty cells become missing values. A column that the file does not have is
    empty; one that the dictionary does not have, a probe's of somebody's own, comes last, as a
    number.
    """
    complete = _complete_lines(path, table)
    header = complete[: complete.index(b"\n")].decode("utf-8", "replace").split(",")
    columns = {column.name: column for column in table.columns}
    try:
        frame = pd.read_csv(
            io.BytesIO(complete),
            dtype={
                name: _pandas_dtype(columns[name]) if name in columns else "float64"
                for name in header
            },
            keep_default_na=False,
            na_values={
                name: ["", "nan"]
                for name in header
                if name not in columns or columns[name].dtype != "text"
            },
        )
    except (ValueError, TypeError) as error:  # a fraction among optional integers is the latter
        raise RunError(f"{path}: is damaged: {error}") from error
    return _with_missing(frame, table)


def empty_cells(path: Path, table: Table, column: str) -> np.ndarray:
    """Where a column has no value, [rows]: a frame shows that as nan, like a nan that was measured.

    True everywhere if the file does not have the column.
    """
    frame = pd.read_csv(
        io.BytesIO(_complete_lines(path, table)),
        usecols=lambda name: name in {table.column_names[0], column},
        dtype="str",
        keep_default_na=False,
    )
    if column not in frame:
        return np.ones(len(frame), dtype=np.bool_)
    empty: np.ndarray = (frame[column] == "").to_numpy(dtype=np.bool_)
    return empty


def _complete_lines(path: Path, table: Table) -> bytes:
    """What is in a file, without a last line that was cut short; at least a header."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    complete = content[: content.rfind(b"\n") + 1]
    return complete or (",".join(table.column_names) + "\n").encode()


def _with_missing(frame: pd.DataFrame, table: Table) -> pd.DataFrame:
    """The dictionary's columns, those of an older run's file that it lacks empty; then others."""
    for column in table.columns:
        if column.name not in frame:
            kind = {"int": "Int64", "float": "float64", "text": "str"}[column.dtype]
            empty = "" if column.dtype == "text" else None
            frame[column.name] = pd.Series([empty] * len(frame), dtype=kind)
    names = table.column_names
    return frame[[*names, *(name for name in frame.columns if name not in names)]]


def _pandas_dtype(column: Column) -> str:
    if column.dtype == "int":
        return "Int64" if column.optional else "int64"
    return {"float": "float64", "text": "str"}[column.dtype]
