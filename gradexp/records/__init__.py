"""Run directories: the data dictionary, append-only writing and tolerant reading."""

from gradexp.records.files import (
    TableWriter,
    read_json,
    read_table,
    remove_leftovers,
    write_atomically,
    write_json,
)
from gradexp.records.run_dir import (
    DIVERGED,
    DONE,
    FAILED,
    FINISHED,
    RULES_FILE,
    RUNNING,
    RunDir,
    is_locked,
    lock_file,
    open_lock,
)
from gradexp.records.tables import TABLES, Column, Table, Value

__all__ = [
    "DIVERGED",
    "DONE",
    "FAILED",
    "FINISHED",
    "RULES_FILE",
    "RUNNING",
    "TABLES",
    "Column",
    "RunDir",
    "Table",
    "TableWriter",
    "Value",
    "is_locked",
    "lock_file",
    "open_lock",
    "read_json",
    "read_table",
    "remove_leftovers",
    "write_atomically",
    "write_json",
]
