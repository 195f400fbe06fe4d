"""The shape of the code: imports go downward, as the map of the rooms says; some know no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "gradexp"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def levels() -> list[set[str]]:
    """The rows of the map, from top to bottom."""
    rows = re.findall(r"^\| (`[^|]+`) \|", (PACKAGE / "ROOMS.md").read_text(), re.MULTILINE)
    return [set(re.findall(r"`(\w+)`", row)) for row in rows]


LEVEL = {room: -row for row, rooms in enumerate(levels()) for room in rooms}


def imported_rooms(source: str, room: str) -> Iterator[str]:
    """The other rooms that a module imports, in whatever form."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "gradexp" if node.level else node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            assert not node.level, "relative imports hide where they lead"
        for name in names:
            parts = name.split(".")
            if parts[0] == "gradexp" and len(parts) > 1 and parts[1] != room:
                yield parts[1]


def test_the_map_names_every_room_once() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    modules = {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
    assert set(LEVEL) == folders | modules
    assert sum(map(len, levels())) == len(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    for other in imported_rooms(path.read_text(), room):
        if other in LEVEL:
            assert LEVEL[other] < LEVEL[room], f"{room} imports {other}"


def test_every_form_of_import_is_seen() -> None:
    source = (
        "import gradexp.cli\nfrom gradexp import sweeps\nfrom gradexp.report.words import number"
    )
    assert list(imported_rooms(source, "nn")) == ["cli", "sweeps", "report"]


@pytest.mark.parametrize(
    "modules",
    ["gradexp.cli", "gradexp.config", "gradexp.records, gradexp.analysis, gradexp.report"],
)
def test_torch_is_imported_only_where_it_computes(modules: str) -> None:
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_capture_owns_hooks_of_modules() -> None:
    """Hooks on modules; those of optimizers and of single tensors belong to who watches steps."""
    pattern = re.compile(r"register_(module_)?(full_)?(forward|backward)\w*hook")
    owners = [path.name for path in MODULES if pattern.search(path.read_text())]
    assert owners == ["capture.py"]
