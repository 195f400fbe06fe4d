"""One cell in a worker: what it tells meanwhile, and what becomes of an error."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gradexp.errors import DataError
from gradexp.records import RunDir
from gradexp.sweeps import plan_sweep, work
from gradexp.sweeps.local import record_failure
from gradexp.train import Observer, Progress, Start
from tests.sweeps import write_config


class Line:
    """The line to the sweep."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, news: Any) -> None:
        self.sent.append(news)


def test_news_are_told_five_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    line = Line()
    reporter = work.Reporter(line)  # type: ignore[arg-type]
    reporter.started(Start("tiny", [], total_steps=90, per_epoch=10, first_step=0))
    for step, moment in enumerate([100.0, 100.1, 100.19, 100.21, 100.4, 100.42], start=1):
        now = moment
        reporter.progressed(Progress(step, 0.5 * step, 0.9, grad_norms=None))  # type: ignore[arg-type]
    assert line.sent == [("moved", (step, 90, 0.5 * step)) for step in (1, 4, 6)]


def _task(folder: Path) -> tuple[dict[str, Any], str, float]:
    [cell] = plan_sweep(write_config(folder), [], ["model.depth=5"]).cells
    return cell.config.model_dump(mode="json"), str(folder / "runs"), 2.5


def test_a_cell_is_its_settings_its_place_and_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried: list[Any] = []

    def execute(config: Any, parent: Path, **how: Any) -> None:
        carried.append((config.model.depth, parent, how))

    monkeypatch.setattr(work, "execute", execute)
    observer = Observer()
    assert work.carry_out(_task(tmp_path), observer) is None
    how = {"observer": observer, "checkpoint_seconds": 2.5}
    assert carried == [(5, tmp_path / "runs", how)]


@pytest.mark.parametrize(
    ("error", "said", "traced"),
    [
        (DataError("mnist: is not there"), "mnist: is not there", False),
        (ValueError("no"), "ValueError: no", True),
        (RuntimeError("no"), "RuntimeError: no", True),
    ],
)
def test_an_error_is_told_and_one_of_the_program_is_traced(  # noqa: PLR0917
    error: Exception,
    said: str,
    traced: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def execute(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(work, "execute", execute)
    assert work.carry_out(_task(tmp_path), Observer()) == said
    assert ("Traceback" in capsys.readouterr().err) == traced


@pytest.mark.parametrize("error", [MemoryError("much"), torch.OutOfMemoryError("much")])
def test_a_lack_of_memory_is_for_a_fresh_process(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(work, "execute", execute)
    with pytest.raises(MemoryError, match="much"):
        work.carry_out(_task(tmp_path), Observer())


def test_a_failure_is_noted_in_what_the_run_knew_of_itself(tmp_path: Path) -> None:
    [cell] = plan_sweep(write_config(tmp_path), [], ["model.depth=5"]).cells
    run = RunDir(tmp_path / "runs" / cell.run)
    record_failure(run, cell, "lost")
    new = {"status": "failed", "name": "tiny", "id": cell.id, "error": "lost"}
    assert run.read_manifest() == new
    run.write_manifest({"status": "running", "device": "cpu"})
    record_failure(run, cell, "lost again")
    known = {"status": "failed", "device": "cpu", "error": "lost again"}
    assert run.read_manifest() == known
    run.manifest.write_text("{")
    record_failure(run, cell, "lost")
    assert run.read_manifest() == new
