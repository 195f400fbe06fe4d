"""The labelled suite: recorded tables get the verdicts that each config expects."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest

from gradexp.analysis import HEALTHY, VERDICTS, judge
from gradexp.records import RunDir

SUITE = Path(__file__).parent.parent / "configs" / "suite"
TABLES = Path(__file__).parent / "data" / "suite.tar.xz"  # made by scripts/score_rules.py --cache
CONFIGS = sorted(SUITE.glob("*.yaml"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    with tarfile.open(TABLES) as archive:
        # The default from Python 3.14 on; before 3.11.4 there is no other way, and no warning.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)  # noqa: S202  an archive of our own
    return folder


def label(config: Path) -> set[str]:
    found = re.match(r"# expected: (.+)\n", config.read_text())
    assert found is not None, config
    return set(found[1].split(", "))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_the_verdicts_are_the_expected_ones(config: Path, runs: Path) -> None:
    found = {verdict.name for verdict in judge(RunDir(runs / config.stem)) if verdict.alarm}
    assert (found or {HEALTHY}) == label(config)


def test_the_suite_covers_every_verdict_and_family() -> None:
    assert len(CONFIGS) >= 24
    assert set.union(*map(label, CONFIGS)) == set(VERDICTS)
    families = {re.search(r"family: (\w+)", config.read_text())[1] for config in CONFIGS}  # type: ignore[index]
    assert families >= {"mlp", "cnn", "mobilenet_v1"}
