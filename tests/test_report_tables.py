"""What `gradexp report` says of a sweep whose numbers are known, in every format."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from gradexp.analysis import Comparison, Statistic
from gradexp.cli import app
from gradexp.errors import RunError
from gradexp.report import make_report
from gradexp.report.overview import overview
from gradexp.report.rows import comparison_rows, statistic_text
from tests.fabricated_runs import Fabricated
from tests.fabricated_sweep import ODD, UNTOUCHED, write_runs, write_sweep

LEGEND = (
    "Median over n seeds, ± half the width of its bootstrap 95 % interval. decay: decades of "
    "pre_grad_norm lost per layer toward the input, at the last probe; negative where it grows. "
    "* best accuracy, ! warning, !! critical."
)
NARROW = """\
                            decay       dead       train        test
activation  depth  n      decades      units    accuracy    accuracy  verdict
                          / layer          %           %           %
relu        4      3   0.10 ±0.10  20.0 ±5.0   90.0 ±7.0  85.0 ±10.0  healthy *
relu        12     3   0.30 ±0.15   0.0 ±0.0  10.0 ±42.5  10.0 ±40.0  vanishing
                                                                      2/3 !!
tanh        4      1         0.00          -        99.0        80.0  healthy
tanh        12     2   0.00 ±0.00          -   45.0 ±5.0   35.0 ±5.0  saturated
                                                                      !
x_50% &     4      2  -0.30 ±0.10          -  20.0 ±10.0        30.0  diverged
a|b                                                                   1/2 !!
x_50% &     12     1            -          -        20.0           -  stalled !!
a|b
Median over n seeds, ± half the width of its bootstrap 95 % interval. decay:
decades of pre_grad_norm lost per layer toward the input, at the last probe;
negative where it grows. * best accuracy, ! warning, !! critical.
"""
WIDE = """\
                             decay       dead       train        test
activation   depth  n      decades      units    accuracy    accuracy  verdict
                           / layer          %           %           %
relu         4      3   0.10 ±0.10  20.0 ±5.0   90.0 ±7.0  85.0 ±10.0  healthy *
relu         12     3   0.30 ±0.15   0.0 ±0.0  10.0 ±42.5  10.0 ±40.0  vanishing 2/3 !!
tanh         4      1         0.00          -        99.0        80.0  healthy
tanh         12     2   0.00 ±0.00          -   45.0 ±5.0   35.0 ±5.0  saturated !
x_50% & a|b  4      2  -0.30 ±0.10          -  20.0 ±10.0        30.0  diverged 1/2 !!
x_50% & a|b  12     1            -          -        20.0           -  stalled !!
Median over n seeds, ± half the width of its bootstrap 95 % interval. decay: decades of pre_grad_norm lost per layer toward the input, at
the last probe; negative where it grows. * best accuracy, ! warning, !! critical.
"""  # noqa: E501  as wide as the terminal
DEPTH_PART = """
Does a deeper net train worse? Training accuracy, paired by seed:
of           first  second  difference   effect  pairs     p  conclusion
                              % points  -1 to 1         Holm
relu         4      12           -70.0    -0.67      3  0.25  needs 5 pairs
tanh         4      12           -59.0    -1.00      1     1  needs 5 pairs
x_50% & a|b  4      12           +10.0    +1.00      1     1  needs 5 pairs
"""
MARKDOWN = r"""| activation | depth | n | decay (decades / layer) | dead units (%) | train accuracy (%) | test accuracy (%) | verdict |
| :-- | :-- | --: | --: | --: | --: | --: | :-- |
| relu | 4 | 3 | 0.10 ±0.10 | 20.0 ±5.0 | 90.0 ±7.0 | 85.0 ±10.0 | healthy \* |
| relu | 12 | 3 | 0.30 ±0.15 | 0.0 ±0.0 | 10.0 ±42.5 | 10.0 ±40.0 | vanishing 2/3 !! |
| tanh | 4 | 1 | 0.00 | - | 99.0 | 80.0 | healthy |
| tanh | 12 | 2 | 0.00 ±0.00 | - | 45.0 ±5.0 | 35.0 ±5.0 | saturated ! |
| x\_50% & a\|b | 4 | 2 | -0.30 ±0.10 | - | 20.0 ±10.0 | 30.0 | diverged 1/2 !! |
| x\_50% & a\|b | 12 | 1 | - | - | 20.0 | - | stalled !! |

Median over n seeds, ± half the width of its bootstrap 95 % interval. decay: decades of pre\_grad\_norm lost per layer toward the input, at the last probe; negative where it grows. \* best accuracy, ! warning, !! critical.
"""  # noqa: E501  a row is a line
LATEX = (
    r"""\begin{tabular}{llrrrrrl}
\toprule
activation & depth & n & decay (decades / layer) & dead units (\%) & train accuracy (\%) & test accuracy (\%) & verdict \\
\midrule
relu & 4 & 3 & 0.10 $\pm$0.10 & 20.0 $\pm$5.0 & 90.0 $\pm$7.0 & 85.0 $\pm$10.0 & healthy * \\
relu & 12 & 3 & 0.30 $\pm$0.15 & 0.0 $\pm$0.0 & 10.0 $\pm$42.5 & 10.0 $\pm$40.0 & vanishing 2/3 !! \\
tanh & 4 & 1 & 0.00 & - & 99.0 & 80.0 & healthy \\
tanh & 12 & 2 & 0.00 $\pm$0.00 & - & 45.0 $\pm$5.0 & 35.0 $\pm$5.0 & saturated ! \\
x\_50\% \& a|b & 4 & 2 & -0.30 $\pm$0.10 & - & 20.0 $\pm$10.0 & 30.0 & diverged 1/2 !! \\
x\_50\% \& a|b & 12 & 1 & - & - & 20.0 & - & stalled !! \\
\bottomrule
\end{tabular}
% """  # noqa: E501  a row is a line
    + LEGEND
    + "\n"
)

# count, median, first and third quartile, low and high end of the interval of the median
Numbers = tuple[float, ...]
NOTHING: Numbers = (0, *[math.nan] * 5)


def one(value: float) -> Numbers:
    """Of a single run there is no interval."""
    return (1, value, value, value, math.nan, math.nan)


def two(low: float, high: float) -> Numbers:
    """Quartiles are values that were observed."""
    return (2, (low + high) / 2, low, high, low, high)


def three(low: float, median: float, high: float) -> Numbers:
    """Quartiles halfway between two values are the outer ones."""
    return (3, median, low, high, low, high)


def same(count: int, value: float) -> Numbers:
    """Every run has this value."""
    return (count, *[value] * 5)


# In the order of the cells: axes, verdict, its level, its runs, and every quantity that is known.
CELLS: list[tuple[tuple[str, int], dict[str, int], str, int, dict[str, Numbers]]] = [
    (
        ("relu", 4),
        {"healthy": 3},
        "note",
        3,
        {
            "decay_start": three(0, 0.1, 0.2),
            "decay": three(0, 0.1, 0.2),
            "born_dead_fraction": three(0, 0, 4 / 30),
            "dead_fraction": three(6 / 30, 6 / 30, 9 / 30),
            "saturated_fraction": same(3, 0),
            "update_ratio": same(3, 1e-3),
            "train_loss": same(3, 1.5),
            "train_accuracy": three(0.8, 0.9, 0.94),
            "test_loss": same(3, 1.5),
            "test_accuracy": three(0.7, 0.85, 0.9),
        },
    ),
    (
        ("relu", 12),
        {"vanishing": 2, "healthy": 1},
        "critical",
        3,
        {
            "decay_start": three(0.1, 0.3, 0.4),
            "decay": three(0.1, 0.3, 0.4),
            "born_dead_fraction": same(3, 0),
            "dead_fraction": same(3, 0),
            "saturated_fraction": same(3, 0),
            "update_ratio": same(3, 1e-3),
            "train_loss": three(1.5, 2.3, 2.3),
            "train_accuracy": three(0.1, 0.1, 0.95),
            "test_loss": three(1.5, 2.3, 2.3),
            "test_accuracy": three(0.1, 0.1, 0.9),
        },
    ),
    (
        ("tanh", 4),
        {"healthy": 1},
        "note",
        1,
        {
            "decay_start": one(0),
            "decay": one(0),
            "saturated_fraction": one(0.6),
            "update_ratio": one(1e-3),
            "train_loss": one(1.5),
            "train_accuracy": one(0.99),
            "test_loss": one(1.5),
            "test_accuracy": one(0.8),
        },
    ),
    (
        ("tanh", 12),
        {"saturated": 2},
        "warning",
        2,
        {
            "decay_start": same(2, 0),
            "decay": same(2, 0),
            "saturated_fraction": two(0.6, 0.7),
            "update_ratio": same(2, 1e-3),
            "train_loss": same(2, 1.5),
            "train_accuracy": two(0.4, 0.5),
            "test_loss": same(2, 1.5),
            "test_accuracy": two(0.3, 0.4),
        },
    ),
    (
        (ODD, 4),
        {"diverged": 1, "stalled": 1},
        "critical",
        2,
        {
            "decay_start": two(-0.4, -0.2),
            "decay": two(-0.4, -0.2),
            "saturated_fraction": same(2, 0),
            "update_ratio": same(2, 1e-3),
            "train_loss": (2, math.inf, 2.3, math.inf, math.nan, math.nan),
            "train_accuracy": two(0.1, 0.3),
            "test_loss": same(2, 2.3),
            "test_accuracy": one(0.3),
        },
    ),
    (
        (ODD, 12),
        {"stalled": 1},
        "critical",
        1,
        {
            "update_ratio": one(1e-3),
            "train_loss": one(2.3),
            "train_accuracy": one(0.2),
            "test_loss": one(2.3),
        },
    ),
]
UNITS = {
    "decay_start": "decades / layer",
    "decay": "decades / layer",
    "born_dead_fraction": "fraction",
    "dead_fraction": "fraction",
    "saturated_fraction": "fraction",
    "update_ratio": "update / weight",
    "train_loss": "nats",
    "train_accuracy": "fraction",
    "test_loss": "nats",
    "test_accuracy": "fraction",
}
STATISTICS = ("count", "median", "q1", "q3", "low", "high")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep"))


def printed(renderable: Any, width: int, **options: Any) -> str:
    """What a terminal of that width shows, without blanks at the ends of lines."""
    console = Console(width=width, file=io.StringIO(), **options)
    console.print(renderable)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def approx(values: Any) -> Any:
    return pytest.approx(values, rel=1e-6, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(("width", "cells"), [(80, NARROW), (140, WIDE)])
def test_the_whole_table_on_a_terminal(sweep: Path, width: int, cells: str) -> None:
    assert printed(make_report([sweep]).output, width) == cells + DEPTH_PART


def test_colours_say_how_bad_a_cell_is_and_which_is_best(sweep: Path) -> None:
    text = printed(make_report([sweep]).output, 140, force_terminal=True, color_system="standard")
    lines = [line for line in text.splitlines() if "±" in line or "99.0" in line or "stall" in line]
    assert ["\x1b[1;32m" in line for line in lines] == [True, *[False] * 5, False]
    assert ["\x1b[1;31m" in line for line in lines] == [
        False,
        True,
        *[False] * 2,
        *[True] * 2,
        False,
    ]
    assert ["\x1b[33m" in line for line in lines] == [*[False] * 3, True, *[False] * 3]
    assert "\x1b[" not in lines[2]  # healthy
    assert lines[-1].startswith("\x1b[2m")  # the legend


def test_messages_say_what_was_found_what_is_missing_and_what_could_not_be_read(
    sweep: Path,
) -> None:
    assert make_report([sweep]).messages == [
        "12 runs in 6 cells: 10 finished, 1 failed, 1 diverged.",
        f"1 planned run missing: {UNTOUCHED}.",
        f"Left out: {(sweep / 'runs' / 'begun').resolve()}: has observed nothing yet",
    ]


def test_csv(sweep: Path) -> None:
    text = str(make_report([sweep], format="csv").output)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == [
        "model.activation",
        "model.depth",
        "runs",
        "verdict",
        "level",
        "verdict_runs",
        *(f"{quantity}_{name}" for quantity in UNITS for name in STATISTICS),
    ]
    assert len(rows) == len(CELLS)
    for row, ((activation, depth), verdicts, level, runs, known) in zip(rows, CELLS, strict=True):
        assert (row["model.activation"], row["model.depth"]) == (activation, str(depth))
        verdict = next(iter(verdicts))
        assert [row[name] for name in ("verdict", "level")] == [verdict, level]
        assert [row["runs"], row["verdict_runs"]] == [str(runs), str(verdicts[verdict])]
        for quantity in UNITS:
            texts = [row[f"{quantity}_{name}"] for name in STATISTICS]
            expected = known.get(quantity, NOTHING)
            assert [float(text or math.nan) for text in texts] == approx(list(expected))
            assert [text == "" for text in texts] == [math.isnan(number) for number in expected]
    assert "\r" not in text


def _in_json(number: float) -> float | str | None:
    if math.isnan(number):
        return None
    return "inf" if math.isinf(number) else number


def test_json_of_cells(sweep: Path) -> None:
    text = str(make_report([sweep], format="json").output)
    assert text.endswith("}\n")
    content = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert content["status"] == {"finished": 10, "failed": 1, "diverged": 1}
    assert content["missing"] == [UNTOUCHED]
    assert content["unreadable"] == [
        f"{(sweep / 'runs' / 'begun').resolve()}: has observed nothing yet"
    ]
    assert content["units"] == UNITS
    for cell, ((activation, depth), verdicts, _, runs, known) in zip(
        content["cells"], CELLS, strict=True
    ):
        assert cell["axes"] == {"model.activation": activation, "model.depth": depth}
        assert cell["runs"] == [f"{activation}-{depth}-{seed}" for seed in range(runs)]
        assert list(cell["verdicts"].items()) == list(verdicts.items())
        assert list(cell["statistics"]) == list(UNITS)
        for quantity in UNITS:
            expected = [_in_json(number) for number in known.get(quantity, NOTHING)]
            shown = cell["statistics"][quantity]
            assert list(shown) == list(STATISTICS)
            for value, number in zip(shown.values(), expected, strict=True):
                assert value == (approx(number) if isinstance(number, float) else number)


def test_json_of_runs(sweep: Path) -> None:
    runs = json.loads(str(make_report([sweep], format="json").output))["runs"]
    folder = (sweep / "runs").resolve()
    names = {run: [verdict["name"] for verdict in said] for run, said in runs.items()}
    assert names == {
        f"{folder}/{name}": said
        for name, said in {
            "relu-4-0": ["healthy", "dying"],
            "relu-4-1": ["healthy", "dying"],
            "relu-4-2": ["healthy", "dying"],
            "relu-12-0": ["vanishing", "stalled"],
            "relu-12-1": ["vanishing", "stalled"],
            "relu-12-2": ["healthy"],
            "tanh-4-0": ["healthy", "saturated"],
            "tanh-12-0": ["saturated"],
            "tanh-12-1": ["saturated"],
            f"{ODD}-4-0": ["diverged", "exploding"],
            f"{ODD}-4-1": ["stalled"],
            f"{ODD}-12-0": ["stalled"],
        }.items()
    }
    (verdict, _) = runs[f"{folder}/relu-12-0"]
    assert list(verdict) == [
        *("name", "level", "layers", "steps", "figure", "limit", "unit", "finding", "advice")
    ]
    assert [verdict[key] for key in ("level", "steps", "limit", "unit")] == [
        "critical",
        [0, 20],
        3.0,
        "decades",
    ]
    assert verdict["figure"] == approx(3.3)
    assert verdict["finding"].startswith("Going back from readout to hidden.1 the gradient falls")
    assert runs[f"{folder}/{ODD}-4-0"][0]["figure"] == "inf"


# first, second, pairs, difference, effect, p, smallest p: signs of three differences fall in eight
# ways, of which the one at hand and one more lie as far out (relu); a single pair says nothing.
DEEPER = {
    "relu": (4, 12, 3, -0.7, -4 / 6, 2 / 8, 1 / 8),
    "tanh": (4, 12, 1, -0.59, -1, 1, 1 / 2),
    ODD: (4, 12, 1, 0.1, 1, 1, 1 / 2),
}
POOLED = [
    ("model.activation", "relu", "tanh", 3, 0.3, 1, 3 * 2 / 8, 3 * 2 / 8),
    ("model.activation", "relu", ODD, 3, -0.6, -4 / 6, 1, 3 * 2 / 8),
    ("model.activation", "tanh", ODD, 2, -0.545, -1, 1, 3 * 2 / 4),
    ("model.depth", 4, 12, 5, -0.59, -9 / 15, 8 / 32, 2 / 32),
]
COMPARED = ("first", "second", "pairs", "difference", "effect", "p", "smallest_p")


def test_json_of_comparisons(sweep: Path) -> None:
    content = json.loads(str(make_report([sweep], format="json").output))
    deeper = {found["recipe"]["model.activation"]: found for found in content["degradation"]}
    assert list(deeper) == list(DEEPER)
    for activation, expected in DEEPER.items():
        assert deeper[activation]["axis"] == "model.depth"
        assert deeper[activation]["quantity"] == "train_accuracy"
        assert [deeper[activation][name] for name in COMPARED] == [
            approx(value) for value in expected
        ]
    assert len(content["comparisons"]) == len(POOLED)
    for found, (axis, first, second, *numbers) in zip(content["comparisons"], POOLED, strict=True):
        assert (found["axis"], found["first"], found["second"]) == (axis, first, second)
        assert [found[name] for name in COMPARED[2:]] == approx(numbers)
        assert (found["quantity"], found["recipe"]) == ("train_accuracy", {})


def test_markdown(sweep: Path) -> None:
    assert str(make_report([sweep], format="markdown").output) == MARKDOWN


def test_latex(sweep: Path) -> None:
    assert str(make_report([sweep], format="latex").output) == LATEX


ODD_LETTERS = "\\&%$#_{}~^±|*`<["


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        (
            "latex",
            r"\textbackslash{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}$\pm$|*`<[ x & 1 & ",
        ),
        ("markdown", r"| \\&%$#\_{}~^±\|\*\`\<\[ x | 1 | "),
    ],
)
def test_every_letter_that_means_something_is_escaped(
    tmp_path: Path, format: str, expected: str
) -> None:
    write_runs(tmp_path, {"config": {"name": f"{ODD_LETTERS}\nx"}})
    text = str(make_report([tmp_path], format=format).output)
    assert expected in text


def test_values_stand_in_a_table_as_they_would_in_a_config(tmp_path: Path) -> None:
    values = (True, False, None, 0.5, 3, [4, 8])
    write_runs(tmp_path, *({"config": {"data": {"root": value}}} for value in values))
    rows = str(make_report([tmp_path], format="markdown").output).splitlines()[2:8]
    assert [row.split(" | ")[0] for row in rows] == [
        *("| 0.5", "| 3", "| false", "| true", r"| \[4, 8]", "| -")
    ]


def test_a_run_without_axes_goes_by_its_name_or_else_its_folder(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", {"config": {"name": "deep"}})
    (row,) = csv.DictReader(io.StringIO(str(make_report([tmp_path / "a"], format="csv").output)))
    assert (row["name"], row["runs"]) == ("deep", "1")
    run = Fabricated(steps=8).write(tmp_path / "b" / "nameless")
    run.config.write_text("seed: 0\n")
    markdown = str(make_report([tmp_path / "b"], format="markdown").output)
    assert markdown.startswith("| run | n | ")
    assert "\n| nameless | 1 | " in markdown


def test_a_quantity_that_no_cell_has_is_no_column(tmp_path: Path) -> None:
    write_runs(tmp_path, {"activation": "tanh", "columns": {"epochs.test_accuracy": math.nan}})
    first = str(make_report([tmp_path], format="markdown").output).splitlines()[0]
    assert first == "| run | n | decay (decades / layer) | train accuracy (%) | verdict |"


def test_without_test_examples_training_accuracy_says_which_cell_is_best(tmp_path: Path) -> None:
    untested = {"columns": {"epochs.test_accuracy": math.nan}}
    runs = [
        {"accuracy": (0.1, reached), "config": {"model": {"depth": depth}}, **untested}
        for depth, reached in ((1, 0.8), (2, 0.9), (3, 0.7))
    ]
    write_runs(tmp_path, *runs)
    rows = str(make_report([tmp_path], format="markdown").output).splitlines()[2:5]
    assert [row.split(" | ")[0] for row in rows if r"\*" in row] == ["| 2"]


def test_nothing_trained_has_no_best_cell(tmp_path: Path) -> None:
    Fabricated(steps=0, probes=1).write(tmp_path / "run")
    assert "*" not in str(make_report([tmp_path], format="latex").output).split(r"\bottomrule")[0]


@pytest.mark.parametrize(
    ("statistic", "unit", "expected"),
    [
        ((3, 0.5, 0, 0, 0.4, 0.7), "fraction", "50.0 ±15.0"),
        ((1, 0.1234, 0, 0, math.nan, math.nan), "fraction", "12.3"),
        ((3, -1.234, 0, 0, -2.0, -1.5), "decades / layer", "-1.23 ±0.25"),
        ((1, 2.0, 0, 0, math.nan, math.nan), "decades / layer", "2.00"),
        ((0, math.nan, 0, 0, math.nan, math.nan), "fraction", "-"),
    ],
)
def test_a_median_with_half_the_width_of_its_interval(
    statistic: tuple[Any, ...], unit: str, expected: str
) -> None:
    assert statistic_text(Statistic(*statistic), unit) == expected


@pytest.mark.parametrize(
    ("difference", "p", "smallest", "expected"),
    [
        (0.1, 0.03125, 0.03125, ["+10.0", "+0.50", "6", "0.0312", "second is better"]),
        (-0.1, 0.05, 0.03, ["-10.0", "+0.50", "6", "0.05", "second is worse"]),
        (-0.1, 0.0501, 0.05, ["-10.0", "+0.50", "6", "0.0501", "no difference shown"]),
        (0.1, 0.5, 0.051, ["+10.0", "+0.50", "6", "0.5", "needs 7 pairs"]),
        (0.0, 1.0, 0.2, ["+0.0", "+0.50", "6", "1", "needs 8 pairs"]),
    ],
)
def test_what_a_comparison_lets_one_conclude(
    difference: float, p: float, smallest: float, expected: list[str]
) -> None:
    found = Comparison("train.lr", 0.1, None, {}, "train_accuracy", 6, difference, 0.5, p, smallest)
    table = comparison_rows([found])
    assert table.rows == [["train.lr", "0.1", "-", *expected]]
    assert table.headings == [
        ("of", ""),
        ("first", ""),
        ("second", ""),
        ("difference", "% points"),
        ("effect", "-1 to 1"),
        ("pairs", ""),
        ("p", "Holm"),
        ("conclusion", ""),
    ]


def test_depth_that_harms_and_depth_that_does_not(tmp_path: Path) -> None:
    """Five pairs of one sign fall so once in 32 cases; of both signs, nothing is shown."""
    runs = [
        {"accuracy": (0.1, reached), "config": {"seed": seed, **_net(init, depth)}}
        for seed in range(5)
        for init, depth, reached in (
            ("a", 2, 0.9),
            ("a", 4, 0.8 - 0.01 * seed),
            ("b", 2, 0.9),
            ("b", 4, 0.9 + 0.01 * (seed - 2)),
        )
    ]
    write_runs(tmp_path, *runs)
    text = printed(make_report([tmp_path]).output, 100)
    conclusions = text.split("Does a deeper net train worse?")[1].splitlines()[3:]
    assert [line.split() for line in conclusions] == [
        ["a", "2", "4", "-12.0", "-1.00", "5", "0.0312", "second", "is", "worse"],
        ["b", "2", "4", "+0.0", "+0.00", "5", "0.625", "no", "difference", "shown"],
    ]


def _net(init: str, depth: int) -> dict[str, Any]:
    return {"model": {"init": init, "depth": depth}}


def test_by_pools_runs_over_the_axes_that_it_leaves_out(sweep: Path) -> None:
    rows = str(make_report([sweep], by=["depth"], format="csv").output)
    pooled = list(csv.DictReader(io.StringIO(rows)))
    kept = ("model.depth", "runs", "verdict", "verdict_runs", "train_accuracy_count")
    assert [[row[name] for name in kept] for row in pooled] == [
        ["4", "6", "healthy", "4", "6"],
        ["12", "6", "vanishing", "2", "6"],
    ]
    medians = ("decay_median", "train_accuracy_median", "test_accuracy_median")
    assert [[float(row[name]) for name in medians] for row in pooled] == [
        approx([0.0, 0.85, 0.8]),
        approx([0.1, 0.3, 0.3]),
    ]
    assert "model.activation" not in pooled[0]


def test_by_takes_several_keys_in_the_order_given(sweep: Path) -> None:
    output = str(make_report([sweep], by=["model.depth", "activation"], format="csv").output)
    rows = list(csv.DictReader(io.StringIO(output)))
    assert list(rows[0])[:2] == ["model.depth", "model.activation"]
    assert [row["model.depth"] for row in rows] == ["4", "4", "4", "12", "12", "12"]


ALARMS = {
    "diverged": [f"{ODD}-4-0: diverged (critical)"],
    "exploding": [f"{ODD}-4-0: exploding (critical)"],
    "vanishing": ["relu-12-0: vanishing (critical)", "relu-12-1: vanishing (critical)"],
    "dying": [],  # notes of runs that learned well are no alarms
    "saturated": ["tanh-12-0: saturated (warning)", "tanh-12-1: saturated (warning)"],
    "stalled": [
        "relu-12-0: stalled (critical)",
        "relu-12-1: stalled (critical)",
        f"{ODD}-12-0: stalled (critical)",
        f"{ODD}-4-1: stalled (critical)",
    ],
    "healthy": [],
}


@pytest.mark.parametrize("word", ALARMS)
def test_fail_on_names_the_runs_with_an_alarm_and_ends_with_one(sweep: Path, word: str) -> None:
    outcome = make_report([sweep], fail_on=[word])
    said = [line for line in outcome.messages if line.startswith("--fail-on: ")]
    assert said == [f"--fail-on: {run}" for run in ALARMS[word]]
    assert outcome.exit_code == (1 if ALARMS[word] else 0)


def test_fail_on_takes_several_words(sweep: Path) -> None:
    said = make_report([sweep], fail_on=["dying", "diverged", "saturated"]).messages[3:]
    assert said == [f"--fail-on: {run}" for run in (*ALARMS["saturated"], *ALARMS["diverged"])]


@pytest.mark.parametrize(
    ("options", "code"),
    [((), 0), (("--fail-on", "dying"), 0), (("--fail-on", "dying, vanishing"), 1)],
)
def test_the_command_ends_with_the_exit_code_of_the_report(
    sweep: Path, options: tuple[str, ...], code: int
) -> None:
    answer = CliRunner().invoke(app, ["report", str(sweep), "--format", "markdown", *options])
    assert answer.exit_code == code
    assert answer.stdout == MARKDOWN
    assert answer.stderr.startswith("12 runs in 6 cells: 10 finished, 1 failed, 1 diverged.\n")


def test_html_and_figures_together_give_both(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, written in (("png", b"png"), ("svg", "svg"), ("pdf", b"pdf")):
        monkeypatch.setattr(f"vl_convert.vegalite_to_{kind}", lambda *_, file=written, **__: file)
    run = sweep / "runs" / "tanh-4-0"
    page = tmp_path / "new" / "page.html"
    messages = make_report([run], html=page, figures=tmp_path / "figures").messages
    assert page.read_text().startswith("<!doctype html>")
    for kind in ("png", "svg", "pdf"):
        assert (tmp_path / "figures" / f"decay.{kind}").read_text() == kind
    size = page.stat().st_size / 1e6
    assert messages == [
        "1 run in 1 cell: 1 finished.",
        f"10 figures as PNG, SVG and PDF: {tmp_path / 'figures'}",
        f"page ({size:.1f} MB): {page}",
    ]


@pytest.mark.parametrize("above", [False, True])
def test_plans_are_seen_at_a_path_and_one_folder_below(tmp_path: Path, above: bool) -> None:
    sweep = tmp_path / "all" / "one"
    write_runs(sweep / "runs", {})
    planned = "\n".join(["run,model.depth", "0,2", *(f"later-{i},3" for i in range(6)), ",4"])
    (sweep / "plan.csv").write_text(planned)
    messages = make_report([tmp_path / "all" if above else sweep, sweep]).messages
    assert messages == [
        "1 run in 1 cell: 1 finished.",
        "6 planned runs missing: later-0, later-1, later-2, later-3, later-4 and 1 more.",
    ]


def test_a_planned_run_is_missing_until_its_manifest_is_there(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs", {})
    (tmp_path / "runs" / "1").mkdir()
    (tmp_path / "plan.csv").write_text("run\n0\n" + "".join(f"{i}\n" for i in range(1, 6)))
    assert make_report([tmp_path]).messages[1] == "5 planned runs missing: 1, 2, 3, 4, 5."


def test_unfinished_runs_are_said_to_be_unfinished(tmp_path: Path) -> None:
    write_runs(tmp_path, {}, {"status": "running"})
    assert make_report([tmp_path]).messages == [
        "2 runs in 1 cell: 1 finished, 1 running.",
        "Unfinished runs are reported as far as they are written.",
    ]


def test_what_all_runs_share_of_their_configs(sweep: Path) -> None:
    assert overview([sweep]).shared_config == {"name": "fabricated"}
    one_net = overview([sweep / "runs" / "relu-4-0", sweep / "runs" / "relu-4-1"])
    assert one_net.shared_config == {
        "name": "fabricated",
        "model.depth": 4,
        "model.activation": "relu",
    }


@pytest.mark.parametrize("format", ["table", "csv", "json", "markdown", "latex"])
def test_folders_without_runs_are_an_error(tmp_path: Path, format: str) -> None:
    with pytest.raises(RunError, match="no run directory"):
        make_report([tmp_path], format=format)
