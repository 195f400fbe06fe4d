"""Writing what a report makes."""

from __future__ import annotations

from pathlib import Path

from gradexp.errors import RunError
from gradexp.records import write_atomically


def write_output(path: Path, content: bytes) -> None:
    """Write a file as a whole, with the folders that lead to it.

    Raises:
        RunError: the folder or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path.parent}: cannot be written: {error.strerror}") from error
    write_atomically(path, content)
