"""Draws small changes to the package at random and tells which of them make no test fail.

    python scripts/mutate.py [-n 200] [--seed 0] [--only gradexp/nn ...] [--since REV] [--list]
                             [--tests tests/test_x.py ...] [--jobs 2]

A change (a mutant) is made in a copy of the checkout, never in the working tree. Then the tests
that execute the changed lines run, cheapest first, until one fails: the change is caught. Otherwise
it has survived: a hole in the net, or a change that alters nothing (then its name goes, with the
reason, on a line of scripts/equivalent_mutants.txt and it no longer counts).

Lines are drawn, not changes: each line of the package that can be changed is as likely as any
other, but for lines with nothing but text on them. Which of the changes of a line is made is then
drawn by the weights of their kinds. The same seed draws the same changes as long as the lines stay.

The first run measures which tests execute which lines, a few minutes for all tests; afterwards only
test files are measured again that execute something changed. Everything is kept in .mutate/, so the
same command goes on where it was stopped; survivors are tried again when their tests have changed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import random
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from covering import (
    FAILED,
    PASSED,
    TIMEOUT,
    Copy,
    CoverageMap,
    Project,
    Run,
    Test,
    in_parallel,
    preload,
    start_trial,
)
from mutations import Mutant, is_real, mutants

ROOT = Path(__file__).parent.parent
SURVIVED, NOT_EXECUTED = "survived", "not executed"
CAUGHT = {FAILED, TIMEOUT}
SLOW = 1.0  # Seconds; slower tests come after all quick ones.

Ranges = Mapping[str, set[int]]


@dataclass(frozen=True)
class Result:
    """What became of a change."""

    name: str
    outcome: str
    tests: int  # How many execute it.
    state: str  # Which tests these are, in which form.
    seconds: float = 0.0
    test: str | None = None  # The one that failed.


def main() -> None:
    """Draw, try and report."""
    options = _options()
    project = Project(options.root.resolve(), options.package)
    drawn = draw(project.sources(), options.n, options.seed, options.only, _since(options))
    if options.list:
        for mutant in drawn:
            print(f"{mutant.name} {mutant.path}:{mutant.line} {mutant.kind}")
        return
    equivalent = _equivalents(options.equivalent)
    results = Results(options)
    with tempfile.TemporaryDirectory(prefix="mut") as folder:
        copies = [Copy(project, Path(folder, str(number))) for number in range(options.jobs)]
        snapshot = Project(copies[0].root, project.package)
        sources = snapshot.sources()
        drawn = draw(sources, options.n, options.seed, options.only, _since(options))
        copies[0].check()
        preload(snapshot)
        tests = _measured(snapshot, copies, options)
        cover = Cover(snapshot, tests, options.budget)
        tried = [mutant for mutant in drawn if mutant.name not in equivalent]
        _try(tried, copies, cover, results)
        report(tried, results.by_name, sources)
        _report_equivalents(drawn, equivalent)


def draw(
    sources: Mapping[str, bytes], n: int, seed: int, only: Iterable[str], changed: Ranges | None
) -> list[Mutant]:
    """The changes to try: a line each, in the order they were drawn."""
    lines: dict[tuple[str, int], list[tuple[Mutant, float]]] = defaultdict(list)
    for path, source in sources.items():
        if _is_below(path, only):
            for mutant, weight in mutants(path, source):
                lines[path, mutant.line].append((mutant, weight))
    if changed is not None:
        lines = {(p, n): found for (p, n), found in lines.items() if n in changed.get(p, ())}
    chosen: list[Mutant] = []
    for place, dice in _lots(lines, sources, seed):
        drawn = _choose(lines[place], sources[place[0]], dice) if len(chosen) < n else None
        chosen += [drawn] if drawn else []
    return chosen


def _lots(
    lines: Mapping[tuple[str, int], list[tuple[Mutant, float]]],
    sources: Mapping[str, bytes],
    seed: int,
) -> list[tuple[tuple[str, int], random.Random]]:
    """The lines in drawn order, each with dice of its own: edits elsewhere change no throw."""
    seen: dict[tuple[str, str], int] = defaultdict(int)
    texts = {path: source.decode().splitlines() for path, source in sources.items()}
    lots = []
    for path, number in lines:
        text = texts[path][number - 1].strip()
        seen[path, text] += 1
        dice = _dice(seed, path, text, seen[path, text])
        weight = min(1.0, sum(weight for _, weight in lines[path, number]))
        lots.append((dice.random() ** (1 / weight), (path, number), dice))
    return [(place, dice) for _, place, dice in sorted(lots, key=lambda lot: lot[0], reverse=True)]


def _dice(*about: object) -> random.Random:
    return random.Random(repr(about))  # noqa: S311  drawn to be repeated, not to be secret


def _choose(
    choices: list[tuple[Mutant, float]], source: bytes, dice: random.Random
) -> Mutant | None:
    remaining = list(choices)
    while remaining:
        index = dice.choices(range(len(remaining)), [weight for _, weight in remaining])[0]
        mutant, _ = remaining.pop(index)
        if is_real(mutant, source):
            return mutant
    return None


class Cover:
    """Finds the tests for a change."""

    def __init__(self, project: Project, tests: list[Test], budget: float) -> None:
        self._project, self._tests, self._budget = project, tests, budget

    def tests(self, mutant: Mutant) -> list[Test]:
        """The tests that execute the change, in the order in which they are to run."""
        if mutant.at_import:
            bodies = self._bodies_for(mutant)
            found = [t for t in self._tests if any(t.lines.get(p, set()) & of for p, of in bodies)]
            found = found or [t for t in self._tests if mutant.path in t.imported]
        else:
            lines = set(range(mutant.first, mutant.last + 1))
            found = [test for test in self._tests if test.lines.get(mutant.path, set()) & lines]
        return self._affordable(_cheapest_first(found))

    def state(self, tests: list[Test]) -> str:
        """Changes with the tests and with all that they import from the tests' folder."""
        files = {path for t in tests for path in (t.file, *t.imported) if path.startswith("tests")}
        content = [(self._project.root / path).read_bytes() for path in sorted(files)]
        names = "\n".join(sorted(test.name for test in tests)).encode()
        return hashlib.sha256(b"".join([names, *content])).hexdigest()[:16]

    def _bodies_for(self, mutant: Mutant) -> list[tuple[str, set[int]]]:
        """Functions that may see what a statement at module level does."""
        names = set(mutant.defines)
        return [
            (path, lines)
            for path, lines, used in self._functions
            if path == mutant.path or used & names
        ]

    @cached_property
    def _functions(self) -> list[tuple[str, set[int], set[str]]]:
        return [
            (path, set(range(node.body[0].lineno, (node.end_lineno or 0) + 1)), _used(node))
            for path, source in self._project.sources().items()
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]

    def _affordable(self, tests: list[Test]) -> list[Test]:
        chosen: list[Test] = []
        spent = 0.0
        for test in tests:
            spent += test.seconds
            if chosen and spent > self._budget:
                break
            chosen.append(test)
        return chosen


def _used(function: ast.AST) -> set[str]:
    return {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Name | ast.Attribute)
    }


def _cheapest_first(tests: list[Test]) -> list[Test]:
    """Quick tests before slow ones; those of a file together, for the fixtures they share."""
    costs: dict[tuple[bool, str], list[float]] = defaultdict(list)
    for test in tests:
        costs[test.seconds > SLOW, test.file].append(test.seconds)

    def key(test: Test) -> tuple[bool, float, str, float]:
        slow = test.seconds > SLOW
        return slow, sum(costs[slow, test.file]), test.file, test.seconds

    return sorted(tests, key=key)


class Results:
    """The results of one command, a line of JSON each, as they come in."""

    def __init__(self, options: argparse.Namespace) -> None:
        what = repr((options.package, sorted(options.only), options.since, sorted(options.tests)))
        digest = hashlib.sha256(what.encode()).hexdigest()[:8]
        name = f"seed-{options.seed}-n-{options.n}-{digest}.jsonl"
        self._path = options.root / options.cache / "results" / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.by_name: dict[str, Result] = {}
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                result = Result(**json.loads(line))
                self.by_name[result.name] = result

    def add(self, result: Result) -> None:
        """Keep a result."""
        self.by_name[result.name] = result
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    def settles(self, mutant: Mutant, state: str) -> bool:
        """Whether a change need not be tried (again)."""
        result = self.by_name.get(mutant.name)
        return result is not None and (result.outcome in CAUGHT or result.state == state)


def _measured(project: Project, copies: list[Copy], options: argparse.Namespace) -> list[Test]:
    """All tests with the lines that they execute, measured where something has changed."""
    files = [str(Path(file)) for file in options.tests] or project.test_files()
    known = CoverageMap(project, options.root.resolve() / options.cache / "lines")
    stale = [file for file in files if not known.is_current(file)]
    if stale:
        _say(f"measuring {len(stale)} of {len(files)} test files")
    for file, run in in_parallel(copies, stale, known.start):
        failed = known.finish(run, file)
        _say(f"  {file} {run.seconds} s")
        for name in failed:
            _say(f"    fails without a change, left out: {name}")
    return list(known.tests(files))


def _try(tried: list[Mutant], copies: list[Copy], cover: Cover, results: Results) -> None:
    sources = Project(copies[0].root, copies[0].project.package).sources()
    chosen = {mutant: cover.tests(mutant) for mutant in tried}
    states = {mutant: cover.state(tests) for mutant, tests in chosen.items()}
    open_ones = [m for m in tried if not results.settles(m, states[m])]
    _say(f"{len(open_ones)} of {len(tried)} changes to try")
    for mutant in open_ones:
        if not chosen[mutant]:
            results.add(Result(mutant.name, NOT_EXECUTED, 0, states[mutant]))

    def start(copy: Copy, mutant: Mutant) -> Run:
        copy.change(mutant.path, mutant.applied(sources[mutant.path]))
        return start_trial(copy, chosen[mutant])

    executed = [mutant for mutant in open_ones if chosen[mutant]]
    for mutant, run in in_parallel(copies, executed, start):
        answer = run.answer or {"outcome": TIMEOUT if run.timed_out else FAILED, "test": None}
        outcome = SURVIVED if answer["outcome"] == PASSED else answer["outcome"]
        found = (outcome, len(chosen[mutant]), states[mutant], run.seconds, answer["test"])
        results.add(Result(mutant.name, *found))
        _say(
            f"  {mutant.name} {mutant.path}:{mutant.line} {mutant.kind}: {outcome} {run.seconds} s"
        )


def report(
    tried: Iterable[Mutant], results: Mapping[str, Result], sources: Mapping[str, bytes]
) -> None:
    """Print what survived, and the score of each room."""
    rooms: dict[str, list[bool]] = defaultdict(list)
    for mutant in tried:
        result = results[mutant.name]
        is_caught = result.outcome in CAUGHT
        rooms[_room(mutant.path)].append(is_caught)
        if not is_caught:
            how = f"{result.outcome}, {result.tests} tests" if result.tests else result.outcome
            print(f"\n{mutant.name} {mutant.path}:{mutant.line} {mutant.kind} ({how})")
            print(mutant.diff(sources[mutant.path]))
    print(f"\n{'room':<12}{'drawn':>7}{'caught':>8}{'survived':>10}{'%':>7}")
    everything = [is_caught for room in rooms.values() for is_caught in room]
    for room, caught in [*sorted(rooms.items()), ("all", everything)]:
        share = 100 * sum(caught) / len(caught) if caught else 100.0
        survived = len(caught) - sum(caught)
        print(f"{room:<12}{len(caught):>7}{sum(caught):>8}{survived:>10}{share:>7.1f}")


def _report_equivalents(drawn: Iterable[Mutant], equivalent: Mapping[str, str]) -> None:
    for mutant in drawn:
        if mutant.name in equivalent:
            reason = equivalent[mutant.name]
            print(f"equivalent: {mutant.name} {mutant.path}:{mutant.line} {reason}")


def _room(path: str) -> str:
    _, *folders, _ = Path(path).parts
    return folders[0] if folders else "top"


def _is_below(path: str, folders: Iterable[str]) -> bool:
    chosen = list(folders)
    return not chosen or any(Path(path).is_relative_to(folder) for folder in chosen)


def _since(options: argparse.Namespace) -> Ranges | None:
    """The lines that differ from a revision, by file."""
    if not options.since:
        return None
    changed: dict[str, set[int]] = defaultdict(set)
    git = ["git", "-C", str(options.root)]
    command = [
        *git,
        "diff",
        "-U0",
        "--no-color",
        "--no-ext-diff",
        "--relative",
        options.since,
        "--",
    ]
    path = ""
    for line in _output([*command, options.package]).splitlines():
        if line.startswith("+++ "):
            path = line[4:].removeprefix("b/")
        elif found := re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line):
            first, count = int(found[1]), int(found[2] or 1)
            changed[path] |= set(range(first, first + count))
    new = [*git, "ls-files", "--others", "--exclude-standard", "--", options.package]
    for path in _output(new).splitlines():
        changed[path] = set(range(1, 1 + len((options.root / path).read_bytes().splitlines())))
    return changed


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _equivalents(path: Path) -> dict[str, str]:
    """Names of changes that alter nothing, with the reasons."""
    if not path.exists():
        return {}
    lines = [line.partition(" ") for line in path.read_text().splitlines()]
    return {name: reason.strip() for name, _, reason in lines if name and name[0] != "#"}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-n", type=int, default=200, help="how many changes to draw (200)")
    add("--seed", type=int, default=0, help="draws others (0)")
    add("--only", nargs="+", default=[], metavar="PATH", help="change only files below these")
    add("--tests", nargs="+", default=[], metavar="FILE", help="run only tests of these files")
    add("--since", metavar="REV", help="change only lines that differ from this git revision")
    add("--list", action="store_true", help="only print what would be tried")
    add("--jobs", type=int, default=2, help="how many to try at a time (2)")
    add(
        "--budget", type=float, default=120.0, metavar="SECONDS",
        help="of a change's tests only the first that take this long together (120)",
    )  # fmt: skip
    add(
        "--equivalent", type=Path, metavar="FILE",
        default=ROOT / "scripts" / "equivalent_mutants.txt",
        help="changes that alter nothing: lines of a name and a reason",
    )  # fmt: skip
    add("--cache", default=".mutate", metavar="DIR", help="what is kept, below the root (.mutate)")
    add("--root", type=Path, default=ROOT, help="the project (this one)")
    add("--package", default="gradexp", help="its package (gradexp)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
