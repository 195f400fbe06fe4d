"""`make_report`: tables in every format, what is missing, exit codes; and figures."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from gradexp.analysis import judge
from gradexp.errors import ConfigError, RunError
from gradexp.report import Outcome, make_report
from gradexp.report.terminal import run_table, verdict_table
from tests.fabricated_runs import Fabricated

LOST = {"loss": (2.31, 2.30), "accuracy": (0.1, 0.1)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two activations by two depths by two seeds: deep sigmoid vanishes, the rest is healthy."""
    path = tmp_path_factory.mktemp("sweep")
    for activation in ("relu", "sigmoid"):
        for depth in (4, 12):
            for seed in range(2):
                sick: dict[str, Any] = LOST if (activation, depth) == ("sigmoid", 12) else {}
                Fabricated(
                    activation=activation,
                    depth=depth,
                    decay=0.6 if activation == "sigmoid" else 0.01 * seed,
                    dead={2: [1, 2, 3, 3, 2 + seed]},
                    config={"seed": seed},
                    **sick,
                ).write(path / "runs" / f"{activation}-{depth}-{seed}")
    return path


def printed(renderable: Any, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def records(outcome: Outcome) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(str(outcome.output))))


def test_the_terminal_table(sweep: Path) -> None:
    outcome = make_report([sweep])
    text = printed(outcome.output)
    assert max(map(len, text.splitlines())) <= 80
    sick = next(line for line in text.splitlines() if "vanishing !!" in line)
    assert sick.startswith("sigmoid     12")
    assert "0.60 ±0.00" in sick
    assert sum("*" in line for line in text.splitlines()[:8]) == 1  # one best cell
    assert "decades" in text
    assert "Does a deeper net train worse?" in text
    assert "needs 5 pairs" in text
    assert outcome.messages == ["8 runs in 4 cells: 8 finished."]
    assert outcome.exit_code == 0


def test_by_pools_over_the_other_axes(sweep: Path) -> None:
    rows = list(
        csv.DictReader(io.StringIO(str(make_report([sweep], by=["depth"], format="csv").output)))
    )
    assert [(row["model.depth"], row["runs"]) for row in rows] == [("4", "4"), ("12", "4")]


def test_csv_holds_every_statistic_unrounded(sweep: Path) -> None:
    rows = records(make_report([sweep], format="csv"))
    sick = next(r for r in rows if (r["model.activation"], r["model.depth"]) == ("sigmoid", "12"))
    assert sick["verdict"] == "vanishing"
    assert float(sick["decay_median"]) == pytest.approx(0.6, abs=1e-4)
    assert sick["train_accuracy_count"] == "2"
    assert sick["dead_fraction_median"] == ""  # sigmoid units cannot be dead


def test_json_is_strict_and_complete(sweep: Path) -> None:
    text = str(make_report([sweep], format="json").output)
    content = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert len(content["cells"]) == 4
    assert len(content["runs"]) == 8
    assert content["units"]["decay"] == "decades / layer"
    assert content["degradation"][0]["axis"] == "model.depth"


def test_markdown_and_latex_escape_what_came_from_a_config(tmp_path: Path) -> None:
    for part in ("a|b_c", "100% & <x>"):
        config = {"model": {"init": part}}
        Fabricated(steps=8, config=config).write(tmp_path / str(len(part)))
    assert r"a\|b\_c" in str(make_report([tmp_path], format="markdown").output)
    latex = str(make_report([tmp_path], format="latex").output)
    assert r"100\% \& <x>" in latex
    assert latex.count(r"\\") == 3  # the head and two rows


def test_square_brackets_in_a_config_are_no_markup(tmp_path: Path) -> None:
    for part in ("[red]x[/red]", "[/]"):
        config = {"model": {"init": part}}
        Fabricated(steps=8, config=config).write(tmp_path / str(len(part)))
    text = printed(make_report([tmp_path]).output, width=120)
    assert "[red]x[/red]" in text
    assert "[/]" in text


def test_fail_on_sets_the_exit_code_and_names_the_runs(sweep: Path) -> None:
    outcome = make_report([sweep], fail_on=["vanishing", "dying"])
    assert outcome.exit_code == 1
    assert "--fail-on: sigmoid-12-0: vanishing (critical)" in outcome.messages
    assert make_report([sweep], fail_on=["exploding"]).exit_code == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"format": "cvs"}, "Did you mean 'csv'?"),
        ({"fail_on": ["vanish"]}, "Did you mean 'vanishing'?"),
        ({"by": ["dept"]}, "Did you mean 'depth'?"),
    ],
)
def test_wrong_words_are_named_with_the_nearest(
    sweep: Path, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=r"allowed|no run has") as caught:
        make_report([sweep], **options)
    assert expected in str(caught.value)


def test_unfinished_and_missing_runs_are_named(tmp_path: Path) -> None:
    for name, status in (("a", "finished"), ("b", "running"), ("c", "failed")):
        Fabricated(steps=8, status=status, config={"seed": name}).write(tmp_path / "runs" / name)
    (tmp_path / "plan.csv").write_text("run,model.depth\na,6\nb,6\nc,6\nd,6\n")
    messages = "\n".join(make_report([tmp_path]).messages)
    assert "1 finished, 1 running, 1 failed" in messages
    assert "1 planned run missing: d." in messages
    assert "reported as far as they are written" in messages


def test_runs_of_different_families_go_into_one_report(tmp_path: Path) -> None:
    Fabricated(steps=8).write(tmp_path / "a")
    Fabricated(steps=8, config={"model": {"family": "cnn", "stages": 3}}).write(tmp_path / "b")
    text = printed(make_report([tmp_path]).output, width=120)
    assert "cnn" in text


def test_rules_from_a_file_change_the_verdicts(sweep: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("vanishing: {decades: 50}\nstalled: false\n")
    assert make_report([sweep], fail_on=["vanishing"], rules=rules).exit_code == 0


def test_a_single_run_is_a_report_too(sweep: Path) -> None:
    outcome = make_report([sweep / "runs" / "relu-4-0"])
    assert "fabricated" in printed(outcome.output)


def test_reports_do_not_change_tables(sweep: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sweep.rglob("*.csv")}

    before = contents()
    make_report([sweep])
    assert contents() == before


def test_the_table_of_one_run_fits_and_hides_no_nan(tmp_path: Path) -> None:
    run = Fabricated(depth=10, non_finite_from=5).write(tmp_path / "run")
    text = printed(run_table(run))
    assert max(map(len, text.splitlines())) <= 80
    line = next(line for line in text.splitlines() if line.startswith("hidden.3"))
    assert "nan" in line
    assert "diverged" in printed(verdict_table(judge(run)))


def test_the_table_of_a_run_that_was_only_observed(tmp_path: Path) -> None:
    run = Fabricated(steps=0, probes=1).write(tmp_path / "run")
    assert "hidden.1" in printed(run_table(run))


def test_figures_are_written_in_three_formats(sweep: Path, tmp_path: Path) -> None:
    messages = make_report([sweep / "runs" / "relu-4-0"], figures=tmp_path / "figures").messages
    assert "figures as PNG, SVG and PDF" in messages[-1]
    marks = {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF"}
    for kind, mark in marks.items():
        written = sorted((tmp_path / "figures").rglob(f"*.{kind}"))
        assert {path.stem for path in written} >= {"verdicts", "decay", "profile", "map", "dead"}
        assert all(path.read_bytes().startswith(mark) for path in written)


def test_axis_titles_carry_units(sweep: Path, tmp_path: Path) -> None:
    make_report([sweep / "runs" / "relu-4-0"], figures=tmp_path)
    (profile,) = tmp_path.rglob("profile.svg")
    assert "gradient before the activation (loss / pre)" in profile.read_text()
    (decay,) = tmp_path.rglob("decay.svg")
    assert "decay (decades / layer)" in decay.read_text()


def test_layers_stand_in_the_order_of_the_net(tmp_path: Path) -> None:
    make_report([Fabricated(depth=13, units=4).write(tmp_path / "run").path], figures=tmp_path)
    (drawn,) = tmp_path.rglob("map.svg")
    labels = re.findall(r">(hidden\.\d+|readout)<", drawn.read_text())
    assert labels == [*(f"hidden.{i}" for i in range(1, 13)), "readout"]


def test_a_folder_that_cannot_be_written_is_an_error(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        make_report([sweep / "runs" / "relu-4-0"], figures=tmp_path / "file")
    with pytest.raises(RunError, match="cannot be written"):
        make_report([sweep / "runs" / "relu-4-0"], html=tmp_path / "file" / "page.html")


READING = """
import sys
from pathlib import Path
from gradexp.analysis import judge, reading
from gradexp.records import RunDir
from gradexp.report import make_report
heavy = ("torch", "scipy", "altair", "jinja2", "pydantic")
print([name for name in heavy if name in sys.modules])
make_report([Path(sys.argv[1])], html=Path(sys.argv[2]) / "page.html", figures=Path(sys.argv[2]))
print("torch" in sys.modules)
"""


def test_the_reading_half_never_imports_torch(sweep: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", READING, str(sweep / "runs" / "relu-4-0"), str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ["[]", "False"]


def test_a_config_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    run = Fabricated(steps=8).write(tmp_path / "run")
    run.config.write_text("a: [")
    Fabricated(steps=8).write(tmp_path / "good")
    assert "is not valid YAML" in "\n".join(make_report([tmp_path]).messages)
    assert yaml.safe_load((tmp_path / "good" / "config.yaml").read_text())["name"] == "fabricated"
