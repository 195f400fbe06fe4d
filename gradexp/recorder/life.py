"""A run's life on record: when it began, on what, and how it ended."""

from __future__ import annotations

import contextlib
import platform
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import torch

import gradexp
from gradexp.errors import GradexpError
from gradexp.records import FAILED, RUNNING, RunDir


class Life:
    """The manifest of a run, kept up to date while it lives.

    Attributes:
        manifest: what is written; add to it before the run ends.
    """

    def __init__(self, run: RunDir, earlier: dict[str, Any], content: dict[str, Any]) -> None:
        self._run = run
        self._began = time.monotonic()
        self.manifest: dict[str, Any] = {
            "status": RUNNING,
            **content,
            "started": earlier.get("started", _now()),
            "seconds": earlier.get("seconds", 0.0),
        }
        run.write_manifest(self.manifest)

    @contextlib.contextmanager
    def on_record(self) -> Iterator[None]:
        """When an error ends the run, its text and traceback are left in the directory."""
        try:
            yield
        except Exception as error:
            self.failed(error)
            raise
        finally:
            self.ended()

    def failed(self, error: BaseException) -> None:
        """The run ends by an error; one that is nobody's fault but the program's is shown whole."""
        if not isinstance(error, GradexpError):
            text = "".join(traceback.format_exception(error))
            self._run.write_traceback(text)
        self.manifest |= {"status": FAILED, "error": f"{type(error).__name__}: {error}"}

    def ended(self) -> None:
        """The run ends, one way or another."""
        spent = time.monotonic() - self._began
        self.manifest["seconds"] = round(self.manifest["seconds"] + spent, 3)
        self.manifest["ended"] = _now()
        self._run.write_manifest(self.manifest)


def environment(device: torch.device) -> dict[str, Any]:
    """What a run's figures depend on beside its config."""
    versions = {
        "gradexp": gradexp.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "versions": versions,
        "device": {"type": device.type, "name": name or platform.machine()},
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
