"""A probe of a user's own: its column is in the file, in the evidence, and on the screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gradexp.analysis import RULES, evidence_of
from gradexp.cli.app import app
from gradexp.probes import PROBES
from gradexp.records import TABLES, RunDir
from tests.test_judgement import forget

CONFIG = """\
name: own
imports: [mine.py]
data: {dataset: digits, batch_size: 32}
model: {family: mlp, depth: 2, width: 6, activation: tanh}
train: {steps: 4}
probe: {every: 2, examples: 16}
"""
MINE = '''\
from gradexp.analysis import RULES, Verdict
from gradexp.probes import PROBES, Measured
from gradexp.records import Column


@PROBES.register("largest")
def largest():
    """The largest magnitude of post."""
    column = Column("post_max", "float", "largest magnitude of post over examples and units")
    return Measured(column, lambda layer, pre, post, grad: post.abs().max(), "max")


@RULES.register("loud")
def loud(evidence):
    """Post is above one half somewhere."""
    last = evidence.added["post_max"][-1]
    if not (last > 0.5).any():
        return None
    layers = tuple(name for name, value in zip(evidence.layers.layer, last) if value > 0.5)
    return Verdict("loud", "warning", layers, (0, 4), float(last.max()), 0.5, "", "Loud.", "Hush.")
'''


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "own.yaml").write_text(CONFIG)
    try:
        out = tmp_path / "runs"
        done = CliRunner().invoke(app, ["run", str(tmp_path / "own.yaml"), "--out", str(out)])
        assert done.exit_code == 0, done.output
        (path,) = out.iterdir()
        (tmp_path / "printed").write_text(done.stdout)
        yield RunDir(path)
    finally:
        PROBES.remove("largest")
        RULES.remove("loud")
        forget()


def test_a_column_of_ones_own_shows_everywhere(run: RunDir, tmp_path: Path) -> None:
    header = run.table_path("signal").read_text().splitlines()[0]
    assert header.split(",") == [*TABLES["signal"].column_names, "post_max"]
    signal = run.read("signal")
    assert (signal["post_max"] >= signal["post_std"]).all()
    hidden = signal[signal["layer"] != "readout"]
    assert hidden["post_max"].between(0, 1).all()
    added = evidence_of(run).added
    assert list(added) == ["post_max"]
    grid = signal.pivot_table(index="step", columns="layer_index", values="post_max")
    np.testing.assert_allclose(added["post_max"], grid.to_numpy(), rtol=1e-5)
    assert added["post_max"].shape == (3, 3)
    printed = (tmp_path / "printed").read_text()
    assert "post_max" in printed
    assert f"{grid.to_numpy()[-1, 0]:.3g}" in printed
    assert "loud" in printed


def test_a_report_of_it_needs_no_probe(run: RunDir) -> None:
    result = CliRunner().invoke(app, ["report", str(run.path)])
    assert result.exit_code == 0
    assert "post_max" in result.stdout
    assert "loud" in result.stdout
