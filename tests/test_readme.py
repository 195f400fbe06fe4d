"""The README tells the truth: its commands run, its lists are those of the program."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from gradexp.records import TABLES
from tests.conftest import ROOT, Cli

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^\$ gradexp (.+)$", README, re.MULTILINE)


def test_commands_run(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    assert len(COMMANDS) >= 6
    for command in COMMANDS:
        words = shlex.split(command)
        if "mnist" in command:
            if not os.environ.get("GRADEXP_DATA"):
                continue
            words += ["--set", "train.steps=5", "--set", "probe.examples=64"]
        result = cli(*words)
        assert result.returncode == 0, (command, result.stderr)


def test_list_is_that_of_the_program(cli: Cli) -> None:
    shown = README.split("$ gradexp list\n")[1].split("```")[0]
    assert shown.split() == cli("list").stdout.split()


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^    make (\w+)", README, re.MULTILINE)) <= targets


@pytest.mark.parametrize("table", TABLES)
def test_every_table_is_described(table: str) -> None:
    assert f"`{table}.csv`" in README


def test_named_configs_exist() -> None:
    for name in re.findall(r"configs/\w+\.(?:yaml|png)", README):
        assert (ROOT / name).is_file(), name
