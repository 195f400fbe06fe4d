"""The files of a data set: where they are looked for, their checksums, their download."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import io
import os
import socket
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gradexp.errors import DataError

TIMEOUT_SECONDS = 30.0
MD5_DIGITS = 32
DOWNLOAD_ERRORS = (
    OSError,
    RuntimeError,
    EOFError,
    http.client.HTTPException,
    tarfile.TarError,
    zlib.error,
)


def data_root(root: str | None) -> Path:
    """Where data is looked for: `root`, else $GRADEXP_DATA, else a cache folder of the user's."""
    chosen = root or os.environ.get("GRADEXP_DATA")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("gradexp"), "data")


@dataclass(frozen=True)
class FileSet:
    """The files of one data set in torchvision's layout.

    `fetcher` is the name of the class in torchvision.datasets that downloads them, `checksums` the
    sha256 (many times faster), or the md5 where only that is published, of each file by its path
    below the root.
    """

    fetcher: str
    checksums: Mapping[str, str]

    def ensure(self, root: Path, *, verify: bool) -> str:
        """Download what is missing; with `verify`, compare every file with its checksum.

        Returns the checksums of all files as they are.

        Raises:
            DataError: nothing to download from, or a file that is not the official one.
        """
        missing = self._missing(root)
        if missing and not verify and len(missing) < len(self.checksums):
            raise DataError(
                f"{self.fetcher}: a copy that is not verified is never mixed with downloaded files."
                f"\nPut these files in place, or set `verify: true`:\n{_listed(missing)}"
            )
        if missing:
            self._fetch(root)
        found = [_checksum(root / file, known) for file, known in self.checksums.items()]
        if verify:
            for (file, known), checksum in zip(self.checksums.items(), found, strict=True):
                _check(root / file, known, checksum)
        return " ".join(found)

    def _missing(self, root: Path) -> list[Path]:
        return [root / file for file in self.checksums if not (root / file).is_file()]

    def _fetch(self, root: Path) -> None:
        """Download once, however many processes want the files at the same time."""
        try:
            with _alone(root):
                if self._missing(root):
                    _download(self.fetcher, root)
        except DOWNLOAD_ERRORS as error:
            raise DataError(
                f"{self.fetcher}: cannot be downloaded: {' '.join(str(error).split())}\n"
                f"Put these files in place, unpacked:\n{_listed(self._missing(root))}\n"
                "or point `root` (or the environment variable GRADEXP_DATA) at a folder that holds "
                f"{', '.join(self.checksums)}"
            ) from error


def _listed(paths: list[Path]) -> str:
    return "\n".join(f"  {path}" for path in paths)


def _checksum(path: Path, like: str) -> str:
    """The file's checksum, of the same kind as another."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(
                file, partial(hashlib.new, _kind(like), usedforsecurity=False)
            )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _kind(checksum: str) -> str:
    return "md5" if len(checksum) == MD5_DIGITS else "sha256"


def _check(path: Path, known: str, found: str) -> None:
    if found != known:
        raise DataError(
            f"{path}: is not the official file ({_kind(known)} {found}, expected {known}). "
            "Delete it to download it again, or set `verify: false` for a converted copy"
        )


def _download(fetcher: str, root: Path) -> None:
    """Let torchvision download into a folder aside, then move in what `root` does not have.

    So a killed download leaves no half file in place, and files that are there are never replaced.
    """
    from torchvision import datasets

    sys.stderr.write(f"downloading {fetcher} to {root}\n")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as folder:
        with _quiet_stdout(), _timeout(TIMEOUT_SECONDS):
            getattr(datasets, fetcher)(folder, download=True)
        for file in Path(folder).rglob("*"):
            target = root / file.relative_to(folder)
            if file.is_file() and file.suffix != ".gz" and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Wait until no other process downloads to this folder."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".download.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Keep stdout clean: it carries results only; a progress bar needs a terminal."""
    bar = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(bar), contextlib.redirect_stderr(bar):
        yield


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Limit each wait: torchvision waits for ever on a network that swallows its packets."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
