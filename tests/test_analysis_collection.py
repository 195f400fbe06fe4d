"""Run directories under paths: which are found, in which order, and what is known of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradexp.analysis import HEALTHY, collect
from gradexp.analysis.collection import find_runs, read_config
from gradexp.errors import ConfigError, RunError
from gradexp.records import RunDir
from tests.fabricated_runs import GOOD, LOST, Fabricated


def names(*paths: Path) -> list[str]:
    return [run.directory.path.name for run in collect(paths).runs]


def test_runs_come_in_the_order_of_their_names_path_by_path(tmp_path: Path) -> None:
    for name in ("b/2", "b/10", "a/z", "a/y/deep", "c"):
        Fabricated(steps=4).write(tmp_path / name)
    assert names(tmp_path) == ["deep", "z", "10", "2", "c"]
    assert names(tmp_path / "b", tmp_path / "a") == ["10", "2", "deep", "z"]
    assert names(tmp_path / "b" / "2", tmp_path / "b") == ["2", "10"]


def test_what_lies_inside_a_run_is_not_searched(tmp_path: Path) -> None:
    Fabricated(steps=4).write(tmp_path / "run")
    Fabricated(steps=4).write(tmp_path / "run" / "copies" / "inner")
    assert list(find_runs(tmp_path)) == [tmp_path / "run"]
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run" / "copies") == ["inner"]


def test_the_runs_of_a_sweep_are_found_and_its_other_folders_passed_over(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    Fabricated(steps=4).write(sweep / "runs" / "one")
    (sweep / "plan.csv").write_text("cell\n")
    (sweep / "figures").mkdir()
    assert list(find_runs(sweep)) == [sweep / "runs" / "one"]


def test_one_run_by_several_ways_is_one_run(tmp_path: Path) -> None:
    Fabricated(steps=4).write(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert names(tmp_path / "link", tmp_path / "run", tmp_path) == ["run"]


def test_paths_without_a_run_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError) as nothing:
        collect([tmp_path / "a", tmp_path])
    assert str(nothing.value) == f"{tmp_path / 'a'}, {tmp_path}: no run directory here or below"
    for missing in ("nowhere", "file"):
        with pytest.raises(ConfigError) as caught:
            collect([tmp_path / missing])
        assert str(caught.value) == (
            f"{tmp_path / missing}: no such directory; give a run or a sweep directory"
        )


def test_what_cannot_be_read_is_told_in_words(tmp_path: Path) -> None:
    for name in ("config", "missing", "manifest", "empty", "good"):
        Fabricated(steps=4).write(tmp_path / name)
    (tmp_path / "config" / "config.yaml").write_text("a: [")
    (tmp_path / "missing" / "config.yaml").unlink()
    (tmp_path / "manifest" / "manifest.json").write_text("{")
    (tmp_path / "empty" / "layers.csv").unlink()
    found = collect([tmp_path])
    assert [run.directory.name for run in found.runs] == ["good"]
    config, empty, manifest, missing = found.unreadable
    assert config.startswith(f"{tmp_path / 'config' / 'config.yaml'}: is not valid YAML: ")
    assert empty == f"{tmp_path / 'empty'}: has observed nothing yet"
    assert manifest.startswith(f"{tmp_path / 'manifest' / 'manifest.json'}: is not valid JSON: ")
    assert missing == (
        f"{tmp_path / 'missing' / 'config.yaml'}: cannot be read: No such file or directory"
    )


def test_a_run_brings_its_status_config_figures_and_verdicts(tmp_path: Path) -> None:
    config = {"seed": 7, "data": {"dataset": "digits"}}
    run = Fabricated(dead={2: [8] * 5}, config=config, status="running", **GOOD)
    run.write(tmp_path / "run")
    (found,) = collect([tmp_path]).runs
    assert (found.status, found.seed) == ("running", 7)
    assert found.config["data.dataset"] == "digits"
    assert found.figures["train_accuracy"] == pytest.approx(0.95)
    assert found.figures["test_accuracy"] == pytest.approx(0.93)
    assert found.figures["dead_fraction"] == pytest.approx(8 / 80)
    assert [verdict.name for verdict in found.verdicts] == [HEALTHY, "dying"]
    assert found.verdict == found.verdicts[0]
    assert found.evidence().totals.steps == 40


def test_a_manifest_without_a_status_and_a_config_without_a_seed(tmp_path: Path) -> None:
    run = Fabricated(steps=4).write(tmp_path / "run")
    run.write_manifest({})
    run.config.write_text("model: {depth: 3}\n")
    (found,) = collect([tmp_path]).runs
    assert (found.status, found.seed) == ("unknown", None)


def test_runs_are_counted_by_status_in_the_order_they_appear(tmp_path: Path) -> None:
    for i, status in enumerate(("failed", "finished", "failed", "running")):
        Fabricated(steps=4, status=status).write(tmp_path / str(i))
    by_status = collect([tmp_path]).by_status
    assert list(by_status.items()) == [("failed", 2), ("finished", 1), ("running", 1)]


def test_runs_are_judged_by_the_rules_that_are_given(tmp_path: Path) -> None:
    Fabricated(decay=0.8, **LOST).write(tmp_path / "run")
    file = tmp_path / "rules.yaml"
    file.write_text("stalled: false\nvanishing: {decades: 4.5}\n")
    assert [v.name for v in collect([tmp_path]).runs[0].verdicts] == ["vanishing", "stalled"]
    (found,) = collect([tmp_path], file).runs
    assert [v.name for v in found.verdicts] == [HEALTHY]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "name: n\nmodel: {depth: 3, activation: {name: elu, alpha: 1.5}}\nseed: 0\n",
            {
                "name": "n",
                "model.depth": 3,
                "model.activation": "elu",
                "model.activation.alpha": 1.5,
                "seed": 0,
            },
        ),
        ("a: {b: {c: [1, 2], name: null}}\n", {"a.b.c": [1, 2], "a.b": None}),
        ("a: {}\n", {}),
        ("", {}),
        ("[1, 2]", {}),
    ],
)
def test_a_config_is_read_with_dotted_keys(
    tmp_path: Path, text: str, expected: dict[str, Any]
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    found = read_config(RunDir(tmp_path))
    assert list(found.items()) == list(expected.items())
