"""The Ray engine: every cell is a task, its run directory travels back as an archive."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import io
import logging
import shutil
import socket
import tempfile
import threading
import time
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gradexp.errors import ConfigError, RunError
from gradexp.records import RULES_FILE, RUNNING, RunDir
from gradexp.sweeps.directory import SweepDir
from gradexp.sweeps.events import Began, Ended, Event, Events, StopRequest, Waiting
from gradexp.sweeps.local import record_failure
from gradexp.sweeps.plan import Cell
from gradexp.sweeps.schema import Resources

POLL_SECONDS = 0.1
SECONDS_TO_ANSWER = 5.0
SECONDS_TO_STOP = 60.0  # a machine elsewhere may be busy; a second Ctrl-C does not wait
RETRIES = 3
INCOMING = ".incoming"
QUEUED_PER_WORKER = 2  # tasks that wait in the cluster, so that no core is idle between two cells


class Bell:
    """An actor that the sweep rings when its tasks are to stop, on whatever machine they are.

    Ray's own way, to cancel a task, does not say what its worker is doing when the interrupt comes;
    the bell is heard only while a run is at work.
    """

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    async def ring(self) -> None:
        """Let everybody hear it, also who asks later."""
        self._rung.set()

    async def heard(self) -> None:
        """Wait until it rings."""
        await self._rung.wait()


@contextlib.contextmanager
def interrupted_by(heard: Any) -> Iterator[None]:
    """Within, the bell is a Ctrl-C: a run saves its checkpoint on it, wherever it stands.

    Args:
        heard: the reference that is ready when the bell rings.
    """
    import ray

    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            ready, _ = ray.wait([heard], timeout=POLL_SECONDS)
            if ready:
                with contextlib.suppress(ray.exceptions.RayError):  # lost, not rung
                    ray.get(heard)
                    _thread.interrupt_main()
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join()


def carry_out_elsewhere(  # noqa: PLR0913, PLR0917  what travels to another machine
    bell: list[Any],
    name: str,
    content: dict[str, Any],
    imports: dict[str, bytes],
    rules: bytes | None,
    begun: bytes | None,
    cpus: int,
) -> bytes:
    """Carry out one cell in a folder of its own; returns its run directory as an archive.

    When the bell rings, that directory holds the checkpoint; nothing when there is none yet.

    Args:
        bell: the reference that is ready when the bell rings, in a list: Ray waits for others.
        name: of the run directory.
        content: the settings of the cell.
        imports: the files that it imports, by name: they need not be on this machine.
        rules: the file with limits for its rules.
        begun: the run directory of an interrupted attempt, to go on from.
        cpus: how many threads to use.
    """
    import torch

    from gradexp.sweeps.work import carry_out
    from gradexp.train import Observer

    torch.set_num_threads(cpus)
    with tempfile.TemporaryDirectory() as folder:
        parts, runs = Path(folder, "parts"), Path(folder, "runs")
        parts.mkdir()
        for file, text in imports.items():
            (parts / file).write_bytes(text)
        content = {**content, "imports": [str(parts / file) for file in imports]}
        if rules is not None:
            content["rules"] = str(parts / RULES_FILE)
            (parts / RULES_FILE).write_bytes(rules)
        if begun:
            runs.mkdir()
            unpack(begun, runs / name)
        run, error = RunDir(runs / name), None
        try:
            with interrupted_by(*bell):
                error = carry_out((content, str(runs), float("inf")), Observer())
        except KeyboardInterrupt:
            if not (run.done() or run.checkpoint.exists()):
                return b""
        if not run.manifest.exists():
            raise RunError(error or f"{name}: the run left nothing")
        return packed(run.path)


def packed(run: Path) -> bytes:
    """The files of a run directory as a zip archive: it can put none outside where it is unpacked.

    For a tar archive that holds only from Python 3.11.4 on.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in run.iterdir():
            if path.is_file():
                archive.write(path, path.name)
    return buffer.getvalue()


def unpack(archive: bytes, target: Path) -> None:
    """Put a run directory in its place; what an earlier attempt wrote there goes."""
    incoming = target.with_name(f".{target.name}{INCOMING}")
    shutil.rmtree(incoming, ignore_errors=True)
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as content:
            content.extractall(incoming)
        RunDir(target).take_over(RunDir(incoming))
    except OSError as error:
        raise RunError(f"{target}: cannot be written: {error.strerror}") from error


class RayEngine:
    """Carries out cells as Ray tasks; cells of a lost machine run again on another."""

    def __init__(
        self, sweep: SweepDir, resources: Resources, workers: int, address: str | None
    ) -> None:
        self._sweep = sweep
        self._resources = resources
        self._workers = workers
        self._address = address
        self._ray = _import_ray()

    def carry_out(self, cells: Sequence[Cell], stop: StopRequest) -> Events:
        """Tell what happens until every cell has ended, or until a stop was asked for."""
        for unfinished in self._sweep.runs.glob(f".*{INCOMING}"):
            shutil.rmtree(unfinished)
        with self._cluster():
            task = self._ray.remote(carry_out_elsewhere).options(
                num_cpus=self._resources.cpus,
                num_gpus=self._resources.gpus,
                max_retries=RETRIES,
            )
            # On another machine it goes on when its own is lost.
            bell = self._ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Bell).remote()
            heard = [bell.heard.remote()]
            queue, running = deque(cells), dict[Any, Cell]()
            while (queue or running) and not stop.requested:
                while queue and len(running) < self._room():
                    cell = queue.popleft()
                    running[task.remote(heard, *self._arguments(cell))] = cell
                    yield Began(cell, cell.run)
                yield from self._listen(running)
            if stop.requested:
                bell.ring.remote()
                yield from self._wait_for_checkpoints(running)

    def _listen(self, running: dict[Any, Cell]) -> Events:
        """What has ended since the last look; its run directory is brought home."""
        ready, _ = self._ray.wait(list(running), timeout=POLL_SECONDS)
        for reference in ready:
            yield self._ended(reference, running.pop(reference))
        if not ready:
            yield Waiting()

    def _wait_for_checkpoints(self, running: dict[Any, Cell]) -> Events:
        """Every task at work sends its checkpoint home; what does not answer is killed."""
        give_up = time.monotonic() + SECONDS_TO_STOP
        while running and time.monotonic() < give_up:
            yield from self._listen(running)
        for reference in running:
            self._ray.cancel(reference, force=True)

    @contextlib.contextmanager
    def _cluster(self) -> Any:
        """The cluster at the address, or one that lives on this machine as long as the sweep."""
        own = not self._ray.is_initialized()
        if own:
            cores = self._workers * self._resources.cpus
            # Only a cluster that starts here can be given its size.
            here = {} if self._address else {"num_cpus": cores, "include_dashboard": False}
            if self._address:
                _refuse_unreachable(self._address)
            try:
                self._ray.init(
                    self._address or "local",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **here,
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(f"--address {self._address}: no Ray cluster: {error}") from error
        try:
            yield
        finally:
            if own:
                self._ray.shutdown()

    def _room(self) -> int:
        """How many tasks to hand to the cluster as it is now: machines may come and go."""
        cores = self._ray.cluster_resources().get("CPU", 1.0)
        return max(1, int(QUEUED_PER_WORKER * cores / self._resources.cpus))

    def _arguments(
        self, cell: Cell
    ) -> tuple[str, dict[str, Any], dict[str, bytes], bytes | None, bytes | None, int]:
        imports = {Path(path).name: Path(path).read_bytes() for path in cell.config.imports}
        rules = Path(cell.config.rules).read_bytes() if cell.config.rules else None
        run = self._sweep.run(cell.run)
        begun = packed(run.path) if run.checkpoint.exists() else None
        content = cell.config.model_dump(mode="json")
        return cell.run, content, imports, rules, begun, self._resources.cpus

    def _ended(self, reference: Any, cell: Cell) -> Event:
        """Bring the run directory home; a task that failed for good is a failed cell."""
        run = self._sweep.run(cell.run)
        try:
            archive = self._ray.get(reference)
            if not archive:  # it was stopped before it began
                return Waiting()
            unpack(archive, run.path)
        except (self._ray.exceptions.RayError, RunError) as error:
            text = str(error).strip().splitlines()[-1]
            record_failure(run, cell, text)
            return Ended(cell, cell.run, text)
        manifest = run.read_manifest()
        if manifest["status"] == RUNNING:  # it was stopped at work
            return Waiting()
        return Ended(cell, cell.run, manifest.get("error"))


def _refuse_unreachable(address: str) -> None:
    """Ray itself would try again for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--address {address}: no Ray cluster answers there: {error}") from error


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--engine ray: Ray is not installed; install it with: pip install 'gradexp[ray]'"
        ) from error
    return ray
