"""The shape of the code: imports go downward, the reading half knows no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "gradexp"
# Higher rooms may import lower ones and rooms of their own level, never the other way.
LEVELS = [
    {"errors"},
    {"registry"},
    {"records"},
    {"nn", "data", "optim"},
    {"probes"},
    {"config"},
    {"train", "analysis"},
    {"sweep", "report"},
    {"cli"},
]
LEVEL = {room: height for height, rooms in enumerate(LEVELS) for room in rooms}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradexp."):
            yield (node.module or "").split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    for other in imported_rooms(path):
        assert LEVEL[other] <= LEVEL[room], f"{room} imports {other}"


@pytest.mark.parametrize(
    "modules",
    ["gradexp.cli", "gradexp.config", "gradexp.records, gradexp.analysis, gradexp.report"],
)
def test_torch_is_imported_only_where_it_computes(modules: str) -> None:
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_capture_owns_hooks() -> None:
    owners = [path.name for path in MODULES if "register_forward_hook" in path.read_text()]
    assert owners == ["capture.py"]
