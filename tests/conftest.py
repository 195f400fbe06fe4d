"""Shared by all tests: where real data lies, and running the program as users do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gradexp.cli.listing import all_registries
from gradexp.config import load_config
from gradexp.imports import MODULES
from gradexp.records import RunDir
from gradexp.train import Observer, Progress, execute
from tests import sweeps
from tests.clocks import Clock
from tests.forking import fork_instead

ROOT = Path(__file__).parent.parent
# Several test processes share few cores: one thread each, here and in processes they start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

Result = subprocess.CompletedProcess[str]
Cli = Callable[..., Result]
Train = Callable[..., RunDir]
Begin = Callable[..., subprocess.Popen[str]]

TINY = """
name: tiny
data: {dataset: digits, batch_size: 32, train_examples: 256}
model: {family: mlp, depth: 3, width: 16}
train: {steps: 12, optimizer: {name: sgd, lr: 0.1, momentum: 0.9}}
probe: {every: 4, examples: 64}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A config file of a net that trains in a blink."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run the program in an empty folder; returns exit code, stdout and stderr."""

    def run(*arguments: str | Path, **environment: str) -> Result:
        return subprocess.run(
            [sys.executable, "-m", "gradexp", *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env={**os.environ, "COLUMNS": "100", **environment},
        )

    return run


@pytest.fixture
def train(tiny: Path, tmp_path: Path) -> Train:
    """Carry out the tiny run with some settings changed."""

    def run(*overrides: str, parent: str = "runs") -> RunDir:
        return execute(load_config(tiny, overrides), tmp_path / parent).run

    return run


def real_data() -> Path:
    """The folder of the real data sets; without one the test is skipped, and says so."""
    folder = os.environ.get("GRADEXP_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("GRADEXP_DATA names no folder with MNIST and CIFAR-10: real data not tested")
    return Path(folder)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of this interpreter start with torch loaded already."""
    fork_instead(monkeypatch)


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start sweeps in processes of their own, as `sweeps.start`; none outlives the test."""
    with contextlib.ExitStack() as begun:

        def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
            process = sweeps.start(*arguments, **options)
            begun.callback(sweeps.end, process)
            return process

        yield start


@pytest.fixture
def unheard_signals_fail() -> Iterator[None]:
    """A signal that the program should have handled fails the test, not all tests."""

    def unheard(number: int, _: object) -> None:
        raise AssertionError(f"nobody handles signal {number}")

    before = {each: signal.signal(each, unheard) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The program's clock, for what it measures, waits for and draws."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


class StopAt(Observer):
    """Interrupts a run as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self._step = step

    def progressed(self, progress: Progress) -> None:
        if progress.step >= self._step:
            raise KeyboardInterrupt


@pytest.fixture(scope="session")
def known_parts() -> dict[str, set[str]]:
    """What is registered before anything is imported for a test, by kind."""
    return {registry.kind: set(registry.names()) for registry in all_registries().values()}


@pytest.fixture(autouse=True)
def parts_go_with_their_test(known_parts: dict[str, set[str]]) -> Iterator[None]:
    """Parts that a test brings, by `imports:` or by hand, are gone after it."""
    yield
    for registry in all_registries().values():
        for name in set(registry.names()) - known_parts[registry.kind]:
            registry.remove(name)
    for name in [name for name in sys.modules if name.startswith(MODULES)]:
        del sys.modules[name]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """This process is the only one of a group, for nets that are spread over processes.

    Lightning leaves in the environment where the group meets; other libraries would go there.
    """
    before = dict(os.environ)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)
