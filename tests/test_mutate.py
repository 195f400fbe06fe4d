"""`scripts/mutate.py` on a project of two rooms: one is tested, of the other nothing is asked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

GUARDED = '''
"""A room that is tested."""


def above(numbers: list[int], floor: int = 2) -> list[int]:
    """What is above the floor, counted from there."""
    return [number - floor for number in numbers if number > floor]
'''
FREE = '''
"""A room whose function runs in a test that asks nothing, and one that never runs."""


def total(numbers: list[int]) -> int:
    """The sum, and one more."""
    return sum(numbers) + 1


def never(number: int) -> int:
    """Twice as much."""
    return number * 2
'''
TESTS = """
from tiny.guarded import above
from tiny.sweeps import total


def test_above() -> None:
    assert above([1, 2, 3, 4]) == [1, 2]
    assert above([1, 2, 3, 4], 3) == [1]


def test_total() -> None:
    total([1, 2])


def test_that_fails_in_any_case() -> None:
    assert above([]) == [1]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    for name, text in {
        "tiny/__init__.py": '"""A package."""\n',
        "tiny/guarded/__init__.py": GUARDED.lstrip(),
        "tiny/sweeps/__init__.py": FREE.lstrip(),
        "tests/__init__.py": "",
        "tests/test_tiny.py": TESTS,
        "sweeps/made.csv": "what the program made\n",
        ".venv/bin/python": "an environment\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def mutate(root: Path, *options: str) -> tuple[str, str]:
    script = [sys.executable, str(ROOT / "scripts" / "mutate.py")]
    about = ["--root", str(root), "--package", "tiny", "--jobs", "1"]
    done = subprocess.run(
        [*script, *about, *options], capture_output=True, text=True, check=False, cwd=root
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def scores(output: str) -> dict[str, tuple[int, int]]:
    """Of each room how many changes were drawn, and caught."""
    rows = re.findall(r"^(\w+) +(\d+) +(\d+) +\d+ +[\d.]+$", output, re.MULTILINE)
    return {room: (int(drawn), int(caught)) for room, drawn, caught in rows}


def test_it_tells_what_is_guarded_from_what_is_not(project: Path) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*.py")}
    output, progress = mutate(project, "-n", "8")
    found = scores(output)
    assert found["guarded"][0] == found["guarded"][1] >= 2
    assert found["sweeps"][0] >= 1
    assert found["sweeps"][1] == 0
    assert found["all"] == tuple(map(sum, zip(found["guarded"], found["sweeps"], strict=True)))
    assert "left out: tests/test_tiny.py::test_that_fails_in_any_case" in progress
    assert "(survived, 1 tests)" in output
    assert "(not executed)" in output
    assert re.search(r"^-    return number \* 2$", output, re.MULTILINE)
    assert {path: path.read_bytes() for path in project.rglob("*.py")} == before

    again, progress = mutate(project, "-n", "8")
    assert again == output
    assert "0 of " in progress
    assert "measuring" not in progress


def test_changes_that_alter_nothing_do_not_count(project: Path) -> None:
    drawn = mutate(project, "-n", "50", "--only", "tiny/sweeps", "--list")[0].splitlines()
    assert all(" tiny/sweeps/__init__.py:" in line for line in drawn)
    names = [line.split()[0] for line in drawn]
    reasons = project / "equivalent.txt"
    reasons.write_text("# why\n" + "".join(f"{name} nobody calls it\n" for name in names[1:]))
    options = ("-n", "50", "--only", "tiny/sweeps", "--equivalent", str(reasons))
    output, _ = mutate(project, *options)
    assert scores(output)["all"] == (1, 0)
    assert output.count("nobody calls it") == len(names) - 1


def test_the_same_seed_draws_the_same_changes(project: Path) -> None:
    drawn = [mutate(project, "-n", "3", "--seed", seed, "--list")[0] for seed in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0].splitlines()) == 3
