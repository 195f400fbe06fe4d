"""Files torn on purpose: a process dies, or its disk fails, at an exact moment of its writing.

`Disk` tells of everything that a process does to files below a folder, in order. A listener may
note it, raise what a full disk would raise, or kill the process on the spot. `arm` does the latter
in any process whose environment asks for it; `die_at` does it to a run in a process of its own.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Literal, Self
from unittest import mock

import pandas as pd

from gradexp.records import TABLES, RunDir

Kind = Literal["open", "write", "fsync", "replace"]
KINDS: tuple[Kind, ...] = ("open", "write", "fsync", "replace")
ENVIRONMENT = "GRADEXP_TEST_TEAR"
PATIENCE = 120.0  # seconds; only a hanging child is waited for so long


@dataclass(frozen=True)
class Event:
    """What is about to happen, or is half done.

    Attributes:
        kind: `open`: the file is about to be created or emptied, if that is what opening it does;
            `write`: the first half of the bytes is in the file; `fsync`, `replace`: about to be.
        path: the file that is written; of a replacement, the one that is replaced.
        source: of a replacement, the file that takes its place.
    """

    kind: Kind
    path: Path
    source: Path | None = None


Listener = Callable[[Event], None]


class Watched:
    """A file open for writing whose writes are told of when half their bytes are in the file."""

    def __init__(self, file: Any, path: Path, heard: Listener) -> None:
        self._file, self._path, self._heard = file, path, heard

    def write(self, content: Any) -> int:
        """Write all of it, in two halves."""
        view = content if isinstance(content, str) else memoryview(content)
        done: int = self._file.write(view[: len(view) // 2])
        if hasattr(self._file, "flush"):
            self._file.flush()
        self._heard(Event("write", self._path))
        return done + int(self._file.write(view[done:]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()


class Disk:
    """As a context: a listener hears of all that is done to the files below a folder."""

    def __init__(self, folder: Path, heard: Listener) -> None:
        self._folder = folder.resolve()
        self._heard = heard
        self._patches = ExitStack()

    def __enter__(self) -> Self:
        for module, name, stand_in in (
            (io, "open", self._opening(io.open)),
            (builtins, "open", self._opening(builtins.open)),
            (os, "fsync", self._syncing(os.fsync)),
            (os, "replace", self._replacing(os.replace)),
            (os, "rename", self._replacing(os.rename)),
        ):
            self._patches.enter_context(mock.patch.object(module, name, stand_in))
        return self

    def __exit__(self, *_error: object) -> None:
        self._patches.close()

    def _below(self, path: Path) -> bool:
        return path.absolute().is_relative_to(self._folder)

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            writes = not isinstance(file, int) and not set(mode).isdisjoint("wxa+")
            if not writes or not self._below(Path(file)):
                return real(file, mode, *rest, **named)
            self._heard(Event("open", Path(file)))
            return Watched(real(file, mode, *rest, **named), Path(file), self._heard)

        return opened

    def _syncing(self, real: Callable[[Any], None]) -> Callable[[Any], None]:
        def synced(file: Any) -> None:
            number = file if isinstance(file, int) else file.fileno()
            path = Path(f"/proc/self/fd/{number}").readlink()
            if self._below(path):
                self._heard(Event("fsync", path))
            real(file)

        return synced

    def _replacing(self, real: Callable[..., None]) -> Callable[..., None]:
        def replaced(source: Any, target: Any, **named: Any) -> None:
            if self._below(Path(target)):
                self._heard(Event("replace", Path(target), Path(source)))
            real(source, target, **named)

        return replaced


class At:
    """Does something at the n-th event, from 0, of a kind and file name; empty ones fit all."""

    def __init__(self, number: int, kind: str, name: str, act: Callable[[], None]) -> None:
        self._number, self._kind, self._name, self._act = number, kind, name, act
        self.seen = 0

    def __call__(self, event: Event) -> None:
        """One event."""
        if self._kind not in ("", event.kind) or self._name not in ("", plain_name(event.path)):
            return
        self.seen += 1
        if self.seen == self._number + 1:
            self._act()


def plain_name(path: Path) -> str:
    """The name of a file; of a temporary one, `.NAME.more.tmp`, that of the file it will be."""
    name = path.name
    return ".".join(name.split(".")[1:3]) if name.endswith(".tmp") else name


def die() -> None:
    """End this process as `kill -9` does: no handler runs, nothing is closed."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    """What Ctrl-C raises."""
    raise KeyboardInterrupt


def fill_up() -> None:
    """What a full disk raises."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def tear(folder: Path, number: int, kind: Kind | Literal[""] = "", name: str = "") -> str:
    """The value of the environment variable by which `arm` kills a process at that moment."""
    return json.dumps([str(folder), number, kind, name])


def arm() -> None:
    """From here on this process dies at the moment that its environment names, if it names one.

    For a process of its own: `python -c "from tests import torn; torn.arm(); ..."`, or from a file
    that a config imports, which the workers of a sweep load as well.
    """
    if wanted := os.environ.get(ENVIRONMENT):
        folder, number, kind, name = json.loads(wanted)
        Disk(Path(folder), At(number, kind, name, die)).__enter__()


def die_at(run: Callable[..., object], arguments: Sequence[object], moment: str) -> bool:
    """Call a module-level function in a new process that dies at that moment of `tear`.

    Returns:
        Whether it came so far; otherwise it has carried out everything.
    """
    process = _server().Process(target=_armed, args=(run, arguments, moment))
    process.start()
    try:
        process.join(PATIENCE)
        assert process.exitcode in (0, -signal.SIGKILL), f"ended with {process.exitcode}"
        return process.exitcode != 0
    finally:
        process.kill()
        process.join()


def _server() -> ForkServerContext:
    """One process imports torch, once; the children that are to die are its copies."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gradexp.train", "tests.torn"])
    return context


def _armed(run: Callable[..., object], arguments: Sequence[object], moment: str) -> None:
    os.environ[ENVIRONMENT] = moment
    arm()
    run(*arguments)


def repeatable(run: RunDir) -> dict[str, object]:
    """Everything of a finished run that must be the same each time: all files, without times."""
    return {path.name: _content(path) for path in sorted(run.path.iterdir()) if path.is_file()}


def _content(path: Path) -> object:
    if path.name == "manifest.json":
        manifest = json.loads(path.read_bytes())
        return {name: manifest[name] for name in ("status", "id", "outcome", "data", "imports")}
    if path.name == "evidence.json":  # knows when the tables were written
        return None
    if path.suffix != ".csv":
        return path.read_bytes()
    timing = [column.name for column in TABLES[path.stem].columns if column.timing]
    text = pd.read_csv(path, dtype=str, keep_default_na=False)
    return path.read_bytes() if not timing else text.drop(columns=timing).to_csv(index=False)
