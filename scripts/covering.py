"""Runs tests on a copy of a project: which lines each executes, and whether a change fails one.

Every run is a fork of this process, which has imported the heavy libraries but not the package, so
that a run starts at once. It imports the package from the copy, and so do the processes that its
tests start. Whatever a run leaves behind is killed.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

# Not copied: environments and caches, and beside the package what the program has made.
IGNORED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
MADE = {"runs", "sweeps", "build", "dist"}
TEST = "MUTATE_TEST"  # In a process that a test starts: the test's name.
COPY = "MUTATE_COPY"  # In every process of a run: the copy it runs on.
PASSED, FAILED, TIMEOUT = "passed", "failed", "timeout"
COVERAGE = """\
[run]
source = {copy}/{package}, {copy}/tests
data_file = {data}/lines
parallel = true
context = ${{MUTATE_TEST}}
sigterm = true
patch = _exit
[report]
ignore_errors = true
"""


@dataclass(frozen=True)
class Project:
    """A package with its tests."""

    root: Path
    package: str

    def sources(self) -> dict[str, bytes]:
        """The package's modules, by their paths below the root."""
        paths = sorted((self.root / self.package).rglob("*.py"))
        return {str(path.relative_to(self.root)): path.read_bytes() for path in paths}

    def test_files(self) -> list[str]:
        """The paths of all test files below the root."""
        return [str(p.relative_to(self.root)) for p in sorted(self.root.glob("tests/**/test_*.py"))]


@dataclass(frozen=True)
class Test:
    """What is known of one test on the unchanged package."""

    name: str
    seconds: float
    lines: Mapping[str, frozenset[int]]  # By module; whatever it starts included.
    imported: frozenset[str]  # Modules that its file imports, one way or another.

    @property
    def file(self) -> str:
        """The file it stands in."""
        return self.name.split("::")[0]


def _ignored(root: Path, folder: str, names: list[str]) -> set[str]:
    """What of a folder is not copied."""
    return IGNORED(folder, names) | (MADE & set(names) if Path(folder) == root else set())


class Copy:
    """A copy of the project in which one run at a time takes place."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.project, self.folder = project, folder
        self.root = folder / "copy"
        self.scratch = folder / "t"
        shutil.copytree(project.root, self.root, ignore=partial(_ignored, project.root))
        self._original: Path | None = None
        self._changes = 0

    def change(self, path: str, source: bytes) -> None:
        """Give one file other content, until the copy is cleaned."""
        file = self._original = self.root / path
        shutil.copy2(file, self.folder / "original")
        file.write_bytes(source)
        self._changes += 1  # Bytecode is found by time and size, and both may be those of another.
        os.utime(file, (self._changes * 10, self._changes * 10))

    def environment(self, *folders: Path) -> dict[str, str]:
        """What a process needs to import the package from here and to leave its files here."""
        self.scratch.mkdir(exist_ok=True)
        environment = {
            "PYTHONPATH": os.pathsep.join(map(str, [*folders, self.root])),
            "TMPDIR": str(self.scratch),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            COPY: str(self.root),
        }
        return environment | self._data()

    def _data(self) -> dict[str, str]:
        """Real data as links, so that a change which removes or replaces files does no harm."""
        data, links = os.environ.get("GRADEXP_DATA"), self.folder / "data"
        if not data or not Path(data).is_dir():
            return {}
        if not links.exists():
            shutil.copytree(
                data, links, copy_function=lambda a, b: Path(b).symlink_to(Path(a).resolve())
            )
        return {"GRADEXP_DATA": str(links)}

    def check(self) -> None:
        """That the package is imported from here, whatever is installed."""
        code = f"import {self.project.package} as p; print(p.__file__)"
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        if not Path(found.stdout.strip()).is_relative_to(self.root):
            raise RuntimeError(f"the package is imported from {found.stdout.strip()}")
        if Project(self.root, self.project.package).sources() != self.project.sources():
            raise RuntimeError("the copy lacks a module of the package")

    def clean(self) -> None:
        """End what still runs here, remove what tests wrote, and undo a change."""
        _end_processes_of(self.root)
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self._original:
            shutil.move(self.folder / "original", self._original)
            self._original = None


class Run:
    """A fork of this process that runs tests in a copy."""

    def __init__(self, copy: Copy, work: Callable[[], Any], environment: dict[str, str]) -> None:
        self.copy = copy
        self._answer = copy.folder / "answer.json"
        self._answer.unlink(missing_ok=True)
        self._began = time.perf_counter()
        self.process = get_context("fork").Process(target=self._main, args=(work, environment))
        self.process.start()

    def _main(self, work: Callable[[], Any], environment: dict[str, str]) -> None:
        os.setsid()
        log = os.open(self.copy.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.environ.update(environment)
        os.chdir(self.copy.root)
        sys.path[0] = str(self.copy.root)
        answer = work()
        package = sys.modules.get(self.copy.project.package)
        if package and not Path(package.__file__ or "").is_relative_to(self.copy.root):
            raise RuntimeError(f"tests ran on {package.__file__}")
        self._answer.write_text(json.dumps(answer))
        os._exit(0)

    def end(self) -> None:
        """Let nothing of it run on."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        self.seconds = round(time.perf_counter() - self._began, 1)
        self.copy.clean()

    @property
    def answer(self) -> Any:
        """What the fork answered; None if it came to no end of its own."""
        return json.loads(self._answer.read_text()) if self._answer.exists() else None

    @property
    def timed_out(self) -> bool:
        """Whether a test took far longer than it should."""
        return self.process.exitcode == -signal.SIGALRM

    @property
    def log(self) -> str:
        """The last lines it printed."""
        return "\n".join((self.copy.folder / "log").read_text(errors="replace").splitlines()[-30:])


Job = TypeVar("Job")


def in_parallel(
    copies: list[Copy], jobs: Iterable[Job], start: Callable[[Copy, Job], Run]
) -> Iterator[tuple[Job, Run]]:
    """Do each job in a free copy; yields it with its run as soon as that has ended."""
    running: dict[int, tuple[Job, Run]] = {}
    free = list(copies)
    try:
        for job in jobs:
            if not free:
                yield from _ended(running, free)
            copy = free.pop()
            run = start(copy, job)
            running[run.process.sentinel] = (job, run)
        while running:
            yield from _ended(running, free)
    finally:
        for _, run in running.values():
            run.end()


def _ended(running: dict[int, tuple[Job, Run]], free: list[Copy]) -> Iterator[tuple[Job, Run]]:
    for sentinel in wait(list(running)):
        job, run = running.pop(cast("int", sentinel))
        run.end()
        free.append(run.copy)
        yield job, run


def preload(project: Project) -> None:
    """Import what the package and its tests import from elsewhere, once for all runs."""
    os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    tests = ((project.root / file).read_bytes() for file in project.test_files())
    names = {
        name.split(".")[0]
        for source in [*project.sources().values(), *tests]
        for node in ast.walk(ast.parse(source))
        for name in _imported(node)
    }
    for name in sorted(names - {project.package, "tests", "ray", *sys.stdlib_module_names}):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if project.package in sys.modules:
        raise RuntimeError(f"{project.package} was imported before it could be changed")


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom) and not node.level:
        yield node.module or ""


def start_trial(copy: Copy, tests: list[Test]) -> Run:
    """Run tests, cheapest first, until one fails."""
    seconds = {test.name: test.seconds for test in tests}
    return Run(copy, lambda: _Trial(seconds).run(), copy.environment())


class _Trial:
    """A pytest plugin that runs chosen tests in order, each within its time."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.failed: str | None = None

    def run(self) -> dict[str, str | None]:
        files = list(dict.fromkeys(name.split("::")[0] for name in self.seconds))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(120)  # For collecting.
        code = pytest.main(["-x", "-q", *QUIET, *files], plugins=[self])
        return {"outcome": FAILED if code else PASSED, "test": self.failed}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        found = {item.nodeid: item for item in items}
        items[:] = [found[name] for name in self.seconds if name in found]
        if len(items) < len(self.seconds):
            raise pytest.UsageError("tests are missing")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        signal.alarm(20 + int(5 * self.seconds[item.nodeid]))
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


QUIET = ["-o", "addopts=", "-p", "no:cacheprovider", "--no-header", "--tb=short"]
QUIET += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # Plugins that were imported before.


class CoverageMap:
    """Which tests execute which lines, kept in a folder, a file for each test file."""

    def __init__(self, project: Project, folder: Path) -> None:
        self._project, self._folder = project, folder

    def is_current(self, test_file: str) -> bool:
        """Whether nothing that the file's tests execute has changed since it was measured."""
        try:
            entry = json.loads(self._path(test_file).read_text())
        except (OSError, ValueError):
            return False
        return all(_digest(self._project.root / path) == of for path, of in entry["files"].items())

    def start(self, copy: Copy, test_file: str) -> Run:
        """Measure one test file in a copy."""
        data = copy.folder / "lines"
        shutil.rmtree(data, ignore_errors=True)
        hooks = data / "hooks"
        hooks.mkdir(parents=True)
        settings = data / "coverage.ini"
        settings.write_text(
            COVERAGE.format(copy=copy.root, package=self._project.package, data=data)
        )
        (hooks / "sitecustomize.py").write_text("import coverage\ncoverage.process_startup()\n")
        environment = copy.environment(hooks) | {"COVERAGE_PROCESS_START": str(settings), TEST: ""}

        def work() -> dict[str, Any]:
            return _Measurement(settings, self._project.package).run(test_file, copy.root)

        return Run(copy, work, environment)

    def finish(self, run: Run, test_file: str) -> list[str]:
        """Keep what a run measured; returns the tests that fail, which can catch nothing."""
        entry = run.answer
        if entry is None:
            return [f"{test_file} as a whole:\n{run.log}"]
        entry["files"] = {path: _digest(run.copy.root / path) for path in entry["files"]}
        path = self._path(test_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entry))
        return [name for name, test in entry["tests"].items() if test["outcome"] == FAILED]

    def tests(self, test_files: list[str]) -> Iterator[Test]:
        """All measured tests that pass."""
        for test_file in test_files:
            if not self._path(test_file).exists():
                continue
            entry = json.loads(self._path(test_file).read_text())
            imported = frozenset(entry["files"])
            for name, test in entry["tests"].items():
                if test["outcome"] == PASSED:
                    lines = {path: frozenset(of) for path, of in test["lines"].items()}
                    yield Test(name, test["seconds"], lines, imported)

    def _path(self, test_file: str) -> Path:
        return self._folder / (test_file.replace("/", "-").removesuffix(".py") + ".json")


class _Measurement:
    """A pytest plugin that tells which test, or which fixture shared by tests, executes a line."""

    def __init__(self, settings: Path, package: str) -> None:
        import coverage

        self._package = package

        self._coverage = coverage.Coverage(config_file=str(settings))
        self._context = ""
        self._tests: dict[str, dict[str, Any]] = {}
        self._fixtures: dict[str, set[str]] = {}

    def run(self, test_file: str, root: Path) -> dict[str, Any]:
        self._coverage.start()
        pytest.main(["-q", *QUIET, test_file], plugins=[self])
        self._coverage.stop()
        self._coverage.save()
        lines = self._lines(root)
        files = {test_file, *(path for of in lines.values() for path in of)}
        for name, test in self._tests.items():
            found: dict[str, set[int]] = {}
            for context in (name, *self._fixtures[name]):
                for path, numbers in lines.get(context, {}).items():
                    found.setdefault(path, set()).update(numbers)
            test["lines"] = {path: sorted(n) for path, n in found.items() if path[:6] != "tests/"}
        return {"files": sorted(files), "tests": self._tests}

    def _lines(self, root: Path) -> dict[str, dict[str, set[int]]]:
        """The executed lines by context and file, of this process and those it started."""
        from coverage import CoverageData
        from coverage.exceptions import CoverageException

        lines: dict[str, dict[str, set[int]]] = {}
        for part in Path(self._coverage.get_data().base_filename()).parent.glob("lines.*"):
            data = CoverageData(str(part))
            with contextlib.suppress(CoverageException):  # Torn: its process was killed.
                data.read()
                for file in data.measured_files():
                    path = str(Path(file).relative_to(root))
                    for number, contexts in data.contexts_by_lineno(file).items():
                        for context in contexts:
                            lines.setdefault(context, {}).setdefault(path, set()).add(number)
        return lines

    def _switch(self, context: str) -> str:
        before, self._context = self._context, context
        os.environ[TEST] = context
        self._coverage.switch_context(context)
        return before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._fixtures[item.nodeid] = {
            _fixture(definitions[-1])
            for definitions in item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
            if definitions[-1].scope != "function"
        }
        self._tests[item.nodeid] = {"outcome": PASSED}
        self._switch(item.nodeid)
        began = time.perf_counter()
        result = yield
        self._tests[item.nodeid]["seconds"] = round(time.perf_counter() - began, 3)
        self._switch("")
        self._forget()
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        before = self._context
        if fixturedef.scope != "function":
            self._switch(_fixture(fixturedef))
        try:
            return (yield)
        finally:
            self._switch(before)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self._tests[report.nodeid]["outcome"] = report.outcome

    def _forget(self) -> None:
        """Let each test compute anew what is kept in caches, so that it is seen to execute it."""
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in {"tests", self._package}:
                for value in list(vars(module).values()):
                    clear = getattr(value, "cache_clear", None)
                    if callable(clear):
                        clear()


def _fixture(definition: Any) -> str:
    return f"{definition.baseid}::{definition.argname}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""


def _end_processes_of(copy: Path) -> None:
    """Kill all processes that know the copy, also those in sessions of their own."""
    mark = f"{COPY}={copy}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(folder.name) != os.getpid() and mark in (folder / "environ").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
