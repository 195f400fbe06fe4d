"""What the figures show: their rows, by hand or from the tables, and where each of them stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert

from gradexp.analysis import RULES, Evidence, Verdict
from gradexp.report import make_report
from gradexp.report.figures import VEGA_LITE, specification
from gradexp.report.figures.across import across_figures
from gradexp.report.figures.grids import Grid, compact
from gradexp.report.figures.layout import Layout
from gradexp.report.overview import overview
from tests.fabricated_runs import GOOD, LOST, Fabricated, merged
from tests.fabricated_sweep import ODD, SWEEP, Row, drawn, write_runs, write_sweep

pytestmark = pytest.mark.xdist_group("figures")  # they share their pictures

Scene = dict[str, Any]
Figures = dict[str, Any]  # specifications by file

BLUE, VERMILION, GREEN, SKY, ORANGE = "#2f86c9", "#d55e00", "#009e73", "#56b4e9", "#e69f00"
DARK_TEXT, LIGHT_TEXT = "#1a1a1a", "#ffffff"
PRE_GRAD = "gradient before the activation (loss / pre)"
UPDATE = "update / weight (ratio of norms)"
STEP = "training step (steps)"
LAYERS = "layer, input to output"

FOLDERS = {
    ("relu", 4): "activation-relu-depth-4",
    ("relu", 12): "activation-relu-depth-12",
    ("tanh", 4): "activation-tanh-depth-4",
    ("tanh", 12): "activation-tanh-depth-12",
    (ODD, 4): "activation-x-50-a-b-depth-4",
    (ODD, 12): "activation-x-50-a-b-depth-12",
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def figures(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Figures:
    with pytest.MonkeyPatch.context() as patch:
        return drawn(patch, sweep, tmp_path_factory.mktemp("figures"))


def across(path: Path) -> Figures:
    """The figures across all cells alone, by name."""
    found = across_figures(Layout(overview([path])))
    return {one.name: specification(one.name, one.chart, one.data) for one in found}


def rows(spec: Any) -> list[dict[str, Any]]:
    """The data of a figure, which has one name."""
    (data,) = spec["datasets"].values()
    return list(data)


def columns(spec: Any, *names: str) -> list[tuple[Any, ...]]:
    """Some columns of the data of a figure."""
    return [tuple(row[name] for name in names) for row in rows(spec)]


def short(value: float) -> float | None:
    """A number with four digits, as figures keep them; nothing for one that is not finite."""
    return float(f"{value:.3e}") if math.isfinite(value) else None


# --- the picture of a figure ---


def scene(spec: Any) -> Scene:
    """Every mark of a figure as it is drawn."""
    picture = vl_convert.vegalite_to_scenegraph(spec, vl_version=VEGA_LITE)
    return dict(picture["scenegraph"])


def parts(node: Scene, **wanted: str) -> Iterator[Scene]:
    """What is drawn of a kind, in the order of drawing."""
    if all(node.get(key) == value for key, value in wanted.items()):
        yield from node["items"]
    for part in node.get("items", []):
        yield from parts(part, **wanted)


def marks(node: Scene, kind: str) -> list[Scene]:
    """The marks of a kind of which something is told."""
    return [mark for mark in parts(node, role="mark", marktype=kind) if "description" in mark]


def told(mark: Scene) -> dict[str, str]:
    """What is told of a mark by the name of each value."""
    text = mark["description"].replace("\N{MINUS SIGN}", "-")
    return dict(part.split(": ", 1) for part in text.split("; "))


def texts(node: Scene, role: str) -> list[str]:
    return [item["text"] for item in parts(node, role=role) if item["text"]]


def axis(node: Scene, orient: str) -> tuple[str, list[str]]:
    """The title of an axis, and its labels from left to right or from top to bottom."""
    along = "x" if orient == "bottom" else "y"
    groups = [group for group in parts(node, role="axis") if group["orient"] == orient]
    titles = [title for group in groups for title in texts(group, "axis-title")]
    labels = [label for group in groups for label in parts(group, role="axis-label")]
    in_order = sorted((label for label in labels if label["text"]), key=lambda one: one[along])
    return " ".join(titles), [label["text"].replace("\N{MINUS SIGN}", "-") for label in in_order]


def panels(node: Scene) -> dict[str, Scene]:
    """The panels of a figure by their titles, row by row from the left to the right."""
    found = sorted(parts(node, name="cell"), key=lambda panel: (panel["y"], panel["x"]))
    return {texts(panel, "title-text")[0]: panel for panel in found}


# --- which figures there are ---


def test_every_figure_that_has_data_and_no_other(figures: Figures) -> None:
    across = ["verdicts", "decay", "train_accuracy", "test_accuracy", "dead_fraction", "gradients"]
    within = ["profile", "map", "updates", "loss", "accuracy"]
    of_cells = {f"{FOLDERS[cell]}/{name}" for cell in FOLDERS for name in within}
    of_cells.remove(f"{FOLDERS[ODD, 12]}/profile")  # failed before its first probe
    of_cells.add(f"{FOLDERS['relu', 4]}/dead")  # in no other cell a unit was ever dead
    assert set(figures) == {*across, *of_cells}


def test_titles(figures: Figures) -> None:
    titles = {
        "verdicts": "Verdicts",
        "decay": "Decay",
        "train_accuracy": "Train accuracy",
        "test_accuracy": "Test accuracy",
        "dead_fraction": "Dead units",
        "gradients": "Gradient over depth",
        "profile": "Gradient over depth",
        "map": "Gradient over depth and time",
        "dead": "Dead units over time",
        "updates": "Size of an update",
        "loss": "Training loss",
        "accuracy": "Training accuracy",
    }
    for file, spec in figures.items():
        name = file.rpartition("/")[2]
        assert spec["title"] == titles[name]
        assert list(spec["datasets"]) == [name]
        assert spec["config"]["background"] == "white"


def test_figures_are_made_for_the_version_of_their_schema_and_sharp_enough_for_print(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, float]] = []

    def converter(kind: str, made: Any) -> Callable[..., Any]:
        def convert(spec: Any, *, vl_version: str, scale: float = 1) -> Any:
            assert f"/v{vl_version}." in spec["$schema"]
            asked.append((spec["title"], kind, scale))
            return made

        return convert

    for kind, made in (("png", b""), ("svg", ""), ("pdf", b"")):
        monkeypatch.setattr(f"vl_convert.vegalite_to_{kind}", converter(kind, made))
    make_report([sweep / "runs" / "tanh-4-0"], figures=tmp_path)
    assert asked[:3] == [("Verdicts", "png", 2), ("Verdicts", "svg", 1), ("Verdicts", "pdf", 1)]
    order = [title for title, kind, _ in asked if kind == "pdf"]
    assert order == [
        *("Verdicts", "Decay", "Train accuracy", "Test accuracy", "Gradient over depth"),
        *("Gradient over depth", "Gradient over depth and time", "Size of an update"),
        *("Training loss", "Training accuracy"),
    ]


# --- numbers ---


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (0.123449, 0.1234),
        (-1.23456e-12, -1.235e-12),
        (1234.5, 1234.0),
        (123456.0, 123456),
        (999_999.0, 999_999),
        (1_000_000.0, 1e6),
        (1_234_567.0, 1.235e6),
        (-1_234_567.0, -1.235e6),
        (0.0, 0),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
    ],
)
def test_numbers_keep_four_digits_and_whole_ones_all_of_them(
    value: float, kept: float | None
) -> None:
    assert compact([[value]]) == [kept]
    if value == int(value if math.isfinite(value) else 0) and abs(value) < 1e6:
        assert isinstance(compact([value])[0], int)


def test_a_grid_runs_over_its_last_axis_first_and_leaves_out_empty_places() -> None:
    grid = Grid(
        {"step": [0, 5], "layer": ["a", "b"]}, {"x": [1, None, 3, None], "y": [None, 2, 6, None]}
    )
    assert grid.rows() == [
        {"step": 0, "layer": "a", "x": 1, "y": None},
        {"step": 0, "layer": "b", "x": None, "y": 2},
        {"step": 5, "layer": "a", "x": 3, "y": 6},
    ]
    assert grid.plain() == {
        "axes": {"step": [0, 5], "layer": ["a", "b"]},
        "values": {"x": [1, None, 3, None], "y": [None, 2, 6, None]},
    }


# --- across cells: boxes ---

BOXES: dict[str, list[tuple[str, str, Any]]] = {
    "verdicts": [
        ("relu", "4", "healthy"),
        ("relu", "12", "vanishing"),
        ("tanh", "4", "healthy"),
        ("tanh", "12", "saturated"),
        (ODD, "4", "diverged"),
        (ODD, "12", "stalled"),
    ],
    "decay": [
        ("relu", "4", 0.1),
        ("relu", "12", 0.3),
        ("tanh", "4", 0),
        ("tanh", "12", 0),
        (ODD, "4", -0.3),
    ],
    "train_accuracy": [
        ("relu", "4", 90),
        ("relu", "12", 10),
        ("tanh", "4", 99),
        ("tanh", "12", 45),
        (ODD, "4", 20),
        (ODD, "12", 20),
    ],
    "test_accuracy": [
        ("relu", "4", 85),
        ("relu", "12", 10),
        ("tanh", "4", 80),
        ("tanh", "12", 35),
        (ODD, "4", 30),
    ],
    "dead_fraction": [("relu", "4", 20), ("relu", "12", 0)],
}
WRITTEN = {
    "verdicts": ["healthy", "vanishing", "healthy", "saturated", "diverged", "stalled"],
    "decay": ["0.10", "0.30", "0.00", "0.00", "-0.30"],
    "train_accuracy": ["90.0", "10.0", "99.0", "45.0", "20.0", "20.0"],
    "test_accuracy": ["85.0", "10.0", "80.0", "35.0", "30.0"],
    "dead_fraction": ["20.0", "0.0"],
}
LIGHT = {  # where light text stands on a dark box
    "verdicts": [],
    "decay": ["0.30", "-0.30"],
    "train_accuracy": ["10.0", "45.0", "20.0", "20.0"],
    "test_accuracy": ["10.0", "35.0", "30.0"],
    "dead_fraction": [],
}


@pytest.mark.parametrize("name", BOXES)
def test_boxes_hold_the_medians_of_their_cells(figures: Figures, name: str) -> None:
    value = "verdict" if name == "verdicts" else "value"
    assert columns(figures[name], "row", "column", value) == BOXES[name]


@pytest.mark.parametrize("name", BOXES)
def test_boxes_stand_under_their_column_and_beside_their_row(figures: Figures, name: str) -> None:
    picture = scene(figures[name])
    shown = list(dict.fromkeys(row for row, _, _ in BOXES[name]))
    assert axis(picture, "bottom") == ("depth", ["4", "12"])
    assert axis(picture, "left") == ("", shown)
    (frame,) = parts(picture, name="root")
    assert (frame["width"], frame["height"]) == (2 * 76, 34 * len(shown))
    boxes, written = marks(picture, "rect"), marks(picture, "text")
    assert len(boxes) == len(written) == len(BOXES[name])
    for box, text, (row, column, _) in zip(boxes, written, BOXES[name], strict=True):
        right, down = column == "12", shown.index(row)
        assert 76 * right < box["x"] < box["x"] + box["width"] < 76 * (right + 1)
        assert 34 * down < box["y"] < box["y"] + box["height"] < 34 * (down + 1)
        assert box["x"] < text["x"] < box["x"] + box["width"]
        assert box["y"] < text["y"] < box["y"] + box["height"]
        assert (told(box)["row"], told(box)["column"]) == (row, column)


@pytest.mark.parametrize("name", BOXES)
def test_boxes_carry_their_figure_in_a_readable_colour(figures: Figures, name: str) -> None:
    written = marks(scene(figures[name]), "text")
    said = [mark["text"].replace("\N{MINUS SIGN}", "-") for mark in written]
    assert said == WRITTEN[name]
    light = [text for mark, text in zip(written, said, strict=True) if mark["fill"] == LIGHT_TEXT]
    assert light == LIGHT[name]
    assert {mark["fill"] for mark in written} <= {DARK_TEXT, LIGHT_TEXT}


@pytest.mark.parametrize(
    ("name", "scheme", "domain", "legend"),
    [
        ("decay", "purpleorange", [-0.3, 0.3], "decay (decades / layer)"),
        ("train_accuracy", "viridis", [0, 100], "train accuracy (%)"),
        ("test_accuracy", "viridis", [0, 100], "test accuracy (%)"),
        ("dead_fraction", "greys", [0, 100], "dead units (%)"),
    ],
)
def test_shades(figures: Figures, name: str, scheme: str, domain: list[float], legend: str) -> None:
    color = figures[name]["layer"][0]["encoding"]["color"]
    assert (color["field"], color["type"]) == ("value", "quantitative")
    assert color["scale"]["scheme"] == scheme
    assert color["scale"]["domain"] == pytest.approx(domain, rel=1e-9)
    assert color["scale"].get("reverse", False) == (name == "decay")
    assert color["legend"]["orient"] == "top"
    assert color["title"] == legend


def test_a_verdict_has_a_colour_of_its_own(figures: Figures) -> None:
    picture = scene(figures["verdicts"])
    colors = {told(box)["verdict"]: box["fill"] for box in marks(picture, "rect")}
    assert colors == {
        "healthy": "#a5d6b7",
        "vanishing": "#8fbfe0",
        "saturated": "#f0e08a",
        "diverged": "#e8998d",
        "stalled": "#c4c4c4",
    }
    assert list(parts(picture, role="legend")) == []


def test_verdicts_of_rules_of_ones_own_share_a_colour(tmp_path: Path) -> None:
    @RULES.register("giddy")
    def giddy(evidence: Evidence) -> Verdict | None:
        """The run is longer than it should be."""
        steps = evidence.totals.steps
        said = Verdict("giddy", "warning", (), (0, 4), 4.0, 3, "steps", "Round.", "Sit down.")
        return said if steps > 12 else None

    try:
        path = write_runs(tmp_path, {"steps": 13}, {"config": _net(depth=3)})
        spec = across(path)["verdicts"]
    finally:
        RULES.remove("giddy")
    colors = {told(box)["verdict"]: box["fill"] for box in marks(scene(spec), "rect")}
    assert colors == {"giddy": "#e3d5c5", "healthy": "#a5d6b7"}


def _net(**settings: Any) -> dict[str, Any]:
    return {"model": settings}


def test_light_text_stands_on_dark_shades_only(tmp_path: Path) -> None:
    """On either side of the limits: 60 % of the largest decay, accuracy 55 %, half the units."""
    cases: list[Row] = [
        {"decay": -0.12, "accuracy": (0.1, 0.551), "dead": {1: [5, 5]}},
        {"decay": -0.121, "accuracy": (0.1, 0.549), "dead": {1: [6, 6]}},
        {"decay": 0.119, "accuracy": (0.1, 0.55), "dead": {1: [4, 4]}},
        {"decay": 0.2, "accuracy": (0.1, 0.9), "dead": {1: [10, 10]}},
    ]
    # In two layers decay is what one of them loses.
    numbered = [{**case, "config": _net(init=str(i))} for i, case in enumerate(cases)]
    found = across(write_runs(tmp_path, *numbered))
    light = {
        name: [mark["fill"] == LIGHT_TEXT for mark in marks(scene(found[name]), "text")]
        for name in ("decay", "train_accuracy", "dead_fraction")
    }
    assert light == {
        "decay": [False, True, False, True],
        "train_accuracy": [False, True, False, False],
        "dead_fraction": [False, True, False, True],
    }


def test_the_shades_of_decay_do_not_zoom_into_nothing(tmp_path: Path) -> None:
    spec = across(write_runs(tmp_path, {"decay": 0.04}))["decay"]
    assert spec["layer"][0]["encoding"]["color"]["scale"]["domain"] == [-0.1, 0.1]
    assert columns(spec, "row", "column", "value") == [("fabricated", "all", 0.04)]


# --- across cells: places ---


def places(path: Path, *configs: dict[str, Any], by: Sequence[str] = ()) -> Layout:
    write_runs(path, *({"config": config} for config in configs))
    return Layout(overview([path], by))


def test_depth_runs_to_the_right_and_all_else_down(tmp_path: Path) -> None:
    configs = [
        {"train": {"lr": lr, "steps": steps}, **_net(depth=depth, init="he")}
        for lr, steps, depth in ((0.3, 5, 3), (0.1, 5, 20), (0.1, 7, 100), (1e-3, 5, 3))
    ]
    place = places(tmp_path, *configs)
    assert (place.across, place.title) == ("model.depth", "depth")
    assert place.columns == ["3", "20", "100"]
    assert place.rows == ["0.001 · 5", "0.3 · 5", "0.1 · 5", "0.1 · 7"]
    first = place.overview.cells[0]
    assert (place.row(first), place.column(first)) == ("0.001 · 5", "3")


def test_without_depth_the_axis_with_the_most_numbers_runs_to_the_right(tmp_path: Path) -> None:
    configs = [
        {"train": {"steps": steps, "lr": lr}, **_net(init=init)}
        for init, steps, lr in (("a", 5, 0.1), ("b", 5, 0.2), ("c", 6, 10), ("d", 6, 9))
    ]
    place = places(tmp_path, *configs)
    assert (place.across, place.title) == ("train.lr", "lr")
    assert place.columns == ["0.1", "0.2", "9", "10"]


def test_an_axis_of_words_and_numbers_is_no_axis_of_numbers(tmp_path: Path) -> None:
    configs = [
        {"train": {"lr": lr, "clip": clip}} for lr, clip in ((1, 3), (1, None), (2, 5), (2, 4))
    ]
    place = places(tmp_path, *configs)
    assert place.across == "train.lr"
    assert place.columns == ["1", "2"]
    assert place.rows == ["3", "4", "5", "-"]


def test_of_words_alone_the_last_axis_runs_to_the_right(tmp_path: Path) -> None:
    configs = [_net(init=init, norm=norm) for init, norm in (("b", "z"), ("a", "y"), ("a", "z"))]
    place = places(tmp_path, *configs)
    assert (place.across, place.title) == ("model.norm", "norm")
    assert (place.rows, place.columns) == (["a", "b"], ["y", "z"])


def test_one_axis_of_words_runs_down(tmp_path: Path) -> None:
    place = places(tmp_path, _net(init="b"), _net(init="a"))
    assert (place.across, place.title) == (None, "")
    assert (place.rows, place.columns) == (["a", "b"], ["all"])
    assert {place.column(cell) for cell in place.overview.cells} == {"all"}


def test_one_axis_of_numbers_runs_to_the_right(tmp_path: Path) -> None:
    place = places(tmp_path, _net(width=16), _net(width=8))
    assert (place.across, place.title) == ("model.width", "width")
    assert (place.rows, place.columns) == (["all"], ["8", "16"])


def test_a_single_cell_goes_by_its_name(tmp_path: Path) -> None:
    place = places(tmp_path, {"name": "deep"})
    assert (place.rows, place.columns, place.title) == (["deep"], ["all"], "")


# --- across cells: gradients ---


def tables(sweep: Path, cell: tuple[str, int], name: str) -> list[pd.DataFrame]:
    """A table of every run of a cell of the sweep."""
    activation, depth = cell
    runs = [sweep / "runs" / f"{activation}-{depth}-{seed}" for seed in range(len(SWEEP[cell]))]
    return [pd.read_csv(run / f"{name}.csv") for run in runs]


Band = tuple[float | None, float | None, float | None]


def bands(
    frames: Sequence[pd.DataFrame], value: str, by: Sequence[str]
) -> dict[tuple[Any, ...], Band]:
    """Median, lowest and highest of a column for every key, nan left out."""
    groups = pd.concat(frames).groupby(list(by), sort=True)[value]
    found = groups.agg(["median", "min", "max"])
    return {
        (key if isinstance(key, tuple) else (key,)): (short(low), short(middle), short(high))
        for key, middle, low, high in found.itertuples()
    }


def test_gradients_are_those_of_the_last_probe_of_every_cell(sweep: Path, figures: Figures) -> None:
    expected = []
    for cell in SWEEP:
        frames = [frame[frame["step"] == 20] for frame in tables(sweep, cell, "signal")]
        for (index,), band in bands(frames, "pre_grad_norm", ["layer_index"]).items():
            expected.append((cell[0], str(cell[1]), index, *band))
    found = columns(figures["gradients"], "row", "column", "layer_index", "low", "median", "high")
    assert found == expected
    assert len(found) == 4 + 12 + 4 + 12 + 4  # the last cell has no probe
    assert found[0] == ("relu", "4", 1, 0.2512, 0.5012, 1)
    assert found[4] == ("relu", "12", 1, 3.981e-05, 5.012e-04, 0.07943)
    assert found[-4] == (ODD, "4", 1, 3.981, 9.915, 15.85)


def test_gradients_have_a_panel_a_row_and_a_line_a_column(figures: Figures) -> None:
    picture = scene(figures["gradients"])
    by_row = panels(picture)
    assert list(by_row) == ["relu", "tanh", ODD]
    assert len({panel["y"] for panel in by_row.values()}) == 1  # side by side
    assert (by_row["relu"]["width"], by_row["relu"]["height"]) == (230, 180)
    of_depth: dict[str, str] = {}
    for row, panel in by_row.items():
        for kind in ("area", "line"):
            depths = [told(mark)["depth"] for mark in marks(panel, kind)]
            assert depths == (["4"] * 4 if row == ODD else ["4"] * 4 + ["12"] * 12)
        of_depth |= {told(mark)["depth"]: mark["stroke"] for mark in marks(panel, "line")}
        assert {point["size"] for point in marks(panel, "symbol")} == {15}
        assert len(marks(panel, "symbol")) == len(marks(panel, "line"))
    assert texts(picture, "legend-label") == ["4", "12"]
    assert texts(picture, "legend-title") == ["depth"]
    headings = [item for item in parts(picture, role="title-text") if item["text"] in by_row]
    assert {(head["fontSize"], head["fill"]) for head in headings} == {(12, "#1a1a1a")}
    symbols = [symbol["fill"] for symbol in parts(picture, role="legend-symbol")]
    assert symbols == [of_depth["4"], of_depth["12"]]


def test_gradients_stand_over_the_layer_on_a_logarithmic_axis(figures: Figures) -> None:
    picture = scene(figures["gradients"])
    title, labels = axis(picture, "left")
    assert title == PRE_GRAD
    assert labels == ["1e+1", "1e+0", "1e-1", "1e-2", "1e-3", "1e-4"]
    assert axis(picture, "bottom")[0].startswith("layer (1 = nearest the input)")
    for panel in panels(picture).values():
        for area, line in zip(marks(panel, "area"), marks(panel, "line"), strict=True):
            index = float(told(line)["layer_index"])
            assert area["x"] == line["x"] == pytest.approx(230 * (index - 1) / 11)
            assert area["y"] >= line["y"] >= area["y2"]  # low, median, high: down is less
    relu = marks(panels(picture)["relu"], "area")
    # From 0.2512 to 1 is as far as from 3.981e-1 to 1.585: 0.6 decades.
    decade = (relu[0]["y"] - relu[0]["y2"]) / 0.6
    assert relu[1]["y"] - relu[1]["y2"] == pytest.approx(0.4 * decade, rel=1e-3)
    assert relu[4]["y"] - relu[4]["y2"] == pytest.approx(3.3 * decade, rel=1e-3)


def test_gradients_leave_out_what_is_zero_or_not_finite(tmp_path: Path) -> None:
    gone: list[Any] = [math.nan, 0.0, math.inf, 0.0]
    last = [[2.0, 2.0, 2.0, 0.0], [4.0, 1.0, math.nan, -0.0], [6.0, 0.0, math.inf, math.nan]]
    runs = [
        {"depth": 4, "pre_grad_norm": [gone, values], "config": {"seed": seed}}
        for seed, values in enumerate(last)
    ]
    spec = across(write_runs(tmp_path, *runs))["gradients"]
    assert columns(spec, "layer_index", "low", "median", "high") == [
        (1, 2, 4, 6),
        (2, 1, 1.5, 2),
        (3, 2, 2, 2),
    ]


@pytest.mark.parametrize(("panels", "side_by_side"), [(1, 3), (2, 2), (3, 3), (4, 2), (5, 3)])
def test_panels_leave_no_hole_where_they_can(
    tmp_path: Path, panels: int, side_by_side: int
) -> None:
    path = write_runs(tmp_path, *({"config": _net(init=f"{i}x")} for i in range(panels)))
    spec = across(path)["gradients"]
    assert spec["columns"] == side_by_side
    assert spec["facet"]["field"] == "row"


def test_nine_panels_at_most(tmp_path: Path) -> None:
    names = [f"part-{i}" for i in range(10)]
    path = write_runs(tmp_path, *({"config": _net(init=name)} for name in names))
    spec = across(path)["gradients"]
    assert list(dict.fromkeys(row for (row,) in columns(spec, "row"))) == names[:9]
    assert {column for (column,) in columns(spec, "column")} == {"all"}


# --- of which cells there are figures ---


def in_turn(path: Path, kinds: str) -> Path:
    """A cell a letter: healthy, vanishing, stalled, diverged."""
    shown: dict[str, Row] = {
        "h": GOOD,
        "v": {**LOST, "depth": 12, "decay": 0.4},
        "s": {**LOST, "steps": 20},
        "d": {**LOST, "non_finite_from": 5, "status": "diverged"},
    }
    runs = [
        {**shown[kind], "config": {"train": {"lr": number}, **_net(depth=2)}}
        for number, kind in enumerate(kinds)
    ]
    return write_runs(path, *runs)


@pytest.mark.parametrize(
    ("kinds", "drawn_cells"),
    [("hshvhdsh", ["lr-5", "lr-3", "lr-1", "lr-6", "lr-0", "lr-2"]), ("hhhhhh", None)],
)
def test_only_the_six_sickest_cells_have_figures_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: str, drawn_cells: list[str] | None
) -> None:
    for kind, made in (("png", b""), ("svg", ""), ("pdf", b"")):
        monkeypatch.setattr(f"vl_convert.vegalite_to_{kind}", lambda *_, file=made, **__: file)
    figures = tmp_path / "figures"
    path = in_turn(tmp_path / "runs", kinds)
    _, *messages = make_report([path], figures=figures).messages
    names = {folder.name for folder in figures.iterdir() if folder.is_dir()}
    assert names == set(drawn_cells or [f"lr-{at}" for at in range(6)])
    number = len(list(figures.rglob("*.pdf")))
    assert number == len(list(figures.rglob("*.svg"))) == len(list(figures.rglob("*.png")))
    assert messages == [
        f"{number} figures as PNG, SVG and PDF: {figures}",
        *(["Figures of single cells: only the 6 sickest of 8."] if drawn_cells else []),
    ]


# --- of one cell ---

HOLES = {  # median over the runs of what is positive; a layer that is 0 in most of them is marked
    (0, "hidden.1"): (1e-4, 1e-3, 1e-2, None),
    (0, "hidden.2"): (0.1, 0.15, 0.2, None),
    (0, "hidden.3"): (1, 2, 3, None),
    (0, "readout"): (None, None, None, 1),
    (12, "hidden.1"): (1e-3, 1e-3, 1e-3, 1),
    (12, "hidden.2"): (0.1, 0.2, 0.3, None),
}
NORMS = [
    [[1e-4, 0.1, 1, 0], [0, 0.1, math.nan, math.nan]],
    [[1e-2, 0.0, 3, 0], [0, math.nan, math.nan, 0]],
    [[1e-3, 0.2, 2, 0], [1e-3, 0.3, math.nan, math.nan]],
]
# Of 60 layers: the most dead units at any probe, in the middle of the run or at its start.
DEAD = {5: 2, 10: 9, 15: 1, 20: 8, 25: 2, 30: 7, 35: 2, 40: 6, 50: 4}


def _holes() -> list[Row]:
    """Three runs with zeros and nan; what is neither is alike but for a factor of ten."""
    nan, inf = math.nan, math.inf
    grads = [10.0 ** (np.arange(4) - 3 + shift) * np.ones((12, 1)) for shift in (-1, 0, 1)]
    for run, step, layer, value in (
        *((run, 3, 0, 0.0) for run in (0, 1)),  # 0 in most runs
        (0, 4, 0, 0.0),  # in one alone, which stays the lowest
        (2, 5, 1, nan),
        *((run, 6, 2, inf) for run in (1, 2)),
        *((run, 7, 3, 1e-12) for run in (0, 1)),
        *((run, 8, 3, 1e5) for run in (1, 2)),
    ):
        grads[run][step, layer] = value
    ratios = np.full((3, 12, 4), nan)
    ratios[:, :, 0] = np.array([[1e-3], [2e-3], [4e-3]])
    ratios[:, :, 1] = 0
    ratios[:, :, 2] = 0
    ratios[0, :, 2] = 1e-3 * np.arange(1, 13)
    ratios[2, 5:, 3] = 0.05
    return [
        {
            "depth": 4,
            "pre_grad_norm": NORMS[run],
            "columns": {
                "gradients.grad_norm": grads[run],
                "gradients.update_norm": 4 * ratios[run],
            },
        }
        for run in range(3)
    ]


def _long() -> list[Row]:
    """One run with more of everything than a figure shows."""
    dead = {layer: [0] * 5 + [most] * 3 + [most - 1] * 4 for layer, most in DEAD.items()}
    dead[40] = [1] * 5 + [6] * 3 + [5] * 4
    dead[45] = [5] * 6 + [0] * 6
    dead[55] = [0] * 12
    return [{"depth": 60, "steps": 128, "probes": 12, "dead": dead, "decay": 0.01}]


def _many() -> list[Row]:
    """The first five of six runs count; of them one has other steps, one has other layers."""
    own: list[Row] = [{}, {"steps": 10}, {"depth": 3}, {}, {}, {}]
    return [
        {
            **more,
            "pre_grad_norm": float(size),
            "update_ratio": size * 1e-3,
            "columns": {"gradients.grad_norm": size, "steps.loss": size},
            "config": _net(depth=2),
        }
        for size, more in zip((1, 9, 7, 3, 4, 100), own, strict=True)
    ]


def _clipped(*coefficients: Any) -> list[Row]:
    return [{"columns": {"steps.clip_coefficient": values}} for values in coefficients]


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """Figures of cells that are not as most are."""
    path = tmp_path_factory.mktemp("special")
    once = [1.0] * 12
    once[5] = 0.9899
    cells = {
        "clipped": _clipped(1.0, 0.5),
        "holes": _holes(),
        "long": _long(),
        "many": _many(),
        "noticed": _clipped(1.0, once),
        "unclipped": _clipped(0.99, 1.0),
    }
    small: Row = {"depth": 2, "steps": 12, "probes": 2, "units": 10, **GOOD}
    for name, runs in cells.items():
        for seed, own in enumerate(runs):
            config = {"seed": seed, "model": {"init": name, "depth": own.get("depth", 2)}}
            shown = {**small, **own, "config": merged(config, own.get("config", {}))}
            Fabricated(**shown).write(path / "runs" / f"{name}-{seed}")
    with pytest.MonkeyPatch.context() as patch:
        found = drawn(patch, path / "runs", path / "figures", by=["init"])
    return {file.removeprefix("init-"): spec for file, spec in found.items()}


PROFILE = ("step", "layer", "low", "median", "high", "zero")
CURVE = ("step", "low", "median", "high")


@pytest.mark.parametrize("cell", [cell for cell in FOLDERS if cell != (ODD, 12)])
def test_profiles_hold_every_probe_of_every_run(
    sweep: Path, figures: Figures, cell: tuple[str, int]
) -> None:
    expected = bands(tables(sweep, cell, "signal"), "pre_grad_norm", ["step", "layer_index"])
    names = [f"hidden.{index}" for index in range(1, cell[1])] + ["readout"]
    assert columns(figures[f"{FOLDERS[cell]}/profile"], *PROFILE) == [
        (step, names[index - 1], *band, None) for (step, index), band in expected.items()
    ]
    assert len(expected) == 3 * cell[1]


def test_profiles_mark_zeros_and_leave_out_what_is_unknown(special: Figures) -> None:
    assert columns(special["holes/profile"], *PROFILE) == [
        (*place, *values) for place, values in HOLES.items()
    ]


def test_a_profile_runs_from_input_to_output_on_a_logarithmic_axis(special: Figures) -> None:
    picture = scene(special["holes/profile"])
    names = ["hidden.1", "hidden.2", "hidden.3", "readout"]
    assert axis(picture, "bottom") == (LAYERS, names)
    assert axis(picture, "left") == (PRE_GRAD, ["1e+0", "1e-1", "1e-2", "1e-3", "1e-4"])
    assert texts(picture, "legend-title") == ["step"]
    assert texts(picture, "legend-label") == ["0", "12"]
    (frame,) = parts(picture, name="root")
    assert (frame["width"], frame["height"]) == (420, 240)
    decade = 240 / (math.log10(3) + 4)
    for kind, value in (("area", "low"), ("line", "median")):
        shown = [mark for mark in marks(picture, kind) if "y" in mark]
        assert len(shown) == 5
        for mark in shown:
            said = told(mark)
            low, median, high, _ = HOLES[int(said["step"]), said[LAYERS]]
            assert mark["x"] == 105 * names.index(said[LAYERS]) + 52.5
            down = low if value == "low" else median
            assert mark["y"] == pytest.approx(240 - decade * (math.log10(down or 0) + 4), abs=0.1)
            if kind == "area":
                top = 240 - decade * (math.log10(high or 0) + 4)
                assert mark["y2"] == pytest.approx(top, abs=0.1)
    colors = {told(mark)["step"]: mark["stroke"] for mark in marks(picture, "line")}
    areas = {told(mark)["step"]: mark["fill"] for mark in marks(picture, "area")}
    assert colors == areas
    assert len(set(colors.values())) == 2


def test_a_triangle_below_marks_an_exact_zero(special: Figures) -> None:
    picture = scene(special["holes/profile"])
    triangles = [m for m in marks(picture, "symbol") if m["shape"] == "triangle-down"]
    found = [(told(mark)["step"], told(mark)["layer"], mark["y"]) for mark in triangles]
    assert found == [("0", "readout", 234), ("12", "hidden.1", 234)]


def test_a_profile_has_five_probes_at_most(special: Figures) -> None:
    """Of twelve at 0, 11, 23, 34, 46, 58, 69, 81, 93, 104, 116, 128."""
    found = columns(special["long/profile"], "step", "layer")
    assert list(dict.fromkeys(step for step, _ in found)) == [0, 34, 69, 93, 128]
    assert len(found) == 5 * 60


def test_scales_of_ratios_do_not_zoom_into_nothing(figures: Figures) -> None:
    flat = FOLDERS["tanh", 4]
    profile = scene(figures[f"{flat}/profile"])
    assert axis(profile, "left") == (PRE_GRAD, ["1e+0", "1e-1", "1e-2", "1e-3"])
    updates = scene(figures[f"{flat}/updates"])
    assert axis(updates, "left") == (UPDATE, ["1e-1", "1e-2", "1e-3", "1e-4", "1e-5"])
    for picture, ends in ((profile, ["0.001", "1"]), (updates, ["0.00001", "0.1"])):
        unseen = [mark for mark in marks(picture, "symbol") if mark["opacity"] == 0]
        assert [list(told(mark).values()) for mark in unseen] == [[end] for end in ends]


def test_runs_that_do_not_match_the_first_are_left_out(special: Figures) -> None:
    """Of 1, 9, 7, 3, 4 and 100 the second has other steps, the third other layers."""
    at = [(step, layer) for step in (0, 12) for layer in ("hidden.1", "readout")]
    assert columns(special["many/profile"], *PROFILE[:-1]) == [(*one, 1, 3, 4) for one in at]
    assert columns(special["many/loss"], *CURVE) == [(step, 1, 3, 4) for step in range(12)]
    assert columns(special["many/updates"], "layer", *CURVE[1:]) == [
        (layer, 1e-3, 3e-3, 4e-3) for layer in ("hidden.1", "readout")
    ]
    assert columns(special["many/map"], "step", "layer", "log") == [
        (step, layer, 0.4771) for step in range(12) for layer in ("hidden.1", "readout")
    ]
    ends = [row for row in rows(special["gradients"]) if row["row"] == "many"]
    assert [tuple(row.values())[2:] for row in ends] == [(1, 3.5, 1, 9), (2, 3.5, 1, 9)]


# Evenly spread over 20 steps, the first and the last among them.
SIXTEEN = [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 16, 18, 19]


@pytest.mark.parametrize("cell", FOLDERS)
def test_maps_hold_the_logarithm_of_the_median(
    sweep: Path, figures: Figures, cell: tuple[str, int]
) -> None:
    wide = [
        frame.pivot_table("grad_norm", "step", "layer_index", dropna=False)
        for frame in tables(sweep, cell, "gradients")
    ]
    names = [f"hidden.{index}" for index in range(1, cell[1])] + ["readout"]
    expected = []
    for step in SIXTEEN:
        for index, name in enumerate(names, start=1):
            values = sorted(float(frame[index].to_dict()[step]) for frame in wide)
            middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
            diverged = cell == (ODD, 4) and step >= 5
            expected.append(
                (step, name, None, 2) if diverged else (step, name, short(math.log10(middle)), None)
            )
    assert columns(figures[f"{FOLDERS[cell]}/map"], "step", "layer", "log", "bad") == [
        (step, name, log if log is None else pytest.approx(log, abs=1e-12), bad)
        for step, name, log, bad in expected
    ]


def test_maps_tell_zero_from_what_is_not_finite(special: Figures) -> None:
    found = {
        (row["step"], row["layer"]): (row["log"], row["bad"]) for row in rows(special["holes/map"])
    }
    usual = {"hidden.1": -3, "hidden.2": -2, "hidden.3": -1, "readout": 0}
    expected: dict[tuple[int, str], tuple[float | None, int | None]] = {
        (step, name): (log, None) for step in range(12) for name, log in usual.items()
    }
    expected[3, "hidden.1"] = (None, 1)
    expected[5, "hidden.2"] = (None, 2)
    expected[6, "hidden.3"] = (None, 2)
    expected[7, "readout"] = (-12, None)
    expected[8, "readout"] = (5, None)
    assert list(found.items()) == list(expected.items())


def test_a_map_has_steps_to_the_right_and_the_input_below(special: Figures) -> None:
    picture = scene(special["holes/map"])
    names = ["hidden.1", "hidden.2", "hidden.3", "readout"]
    assert axis(picture, "bottom") == (STEP, [str(step) for step in range(12)])
    assert axis(picture, "left") == ("layer", names[::-1])
    boxes = {(told(box)["step"], told(box)["layer"]): box for box in marks(picture, "rect")}
    assert len(boxes) == 48
    for (step, layer), box in boxes.items():
        assert (box["x"], box["width"]) == (35 * int(step), 35)
        assert (box["y"], box["height"]) == (60 * names[::-1].index(layer), 60)


def test_a_map_is_black_for_zero_red_for_what_is_not_finite_and_ends_at_its_scale(
    special: Figures,
) -> None:
    picture = scene(special["holes/map"])
    fills = {(told(m)["step"], told(m)["layer"]): m["fill"] for m in marks(picture, "rect")}
    assert [place for place, fill in fills.items() if fill == "black"] == [("3", "hidden.1")]
    red = [place for place, fill in fills.items() if fill == VERMILION]
    assert red == [("5", "hidden.2"), ("6", "hidden.3")]
    assert fills["7", "readout"] == "rgb(68, 1, 84)"  # the ends of viridis
    assert fills["8", "readout"] == "rgb(253, 231, 37)"
    assert (
        len({fills["0", layer] for layer in ("hidden.1", "hidden.2", "hidden.3", "readout")}) == 4
    )
    scale = special["holes/map"]["layer"][0]["encoding"]["color"]["scale"]
    assert (scale["domain"], scale["scheme"]) == ([-8, 2], "viridis")
    assert texts(picture, "legend-title") == ["log10 of grad_norm (loss / weight)"]


def test_a_map_has_sixteen_steps_and_48_layers_at_most(special: Figures) -> None:
    """Of 128 steps 24 are known: 127 / 23 steps lie between two of them."""
    found = columns(special["long/map"], "step", "layer")
    steps = list(dict.fromkeys(step for step, _ in found))
    kept = [0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18, 20, 21, 23]
    assert steps == [round(127 / 23 * at) for at in kept]
    layers = list(dict.fromkeys(layer for _, layer in found))
    assert len(found) == len(steps) * len(layers) == 16 * 48
    indices = [60 if name == "readout" else int(name.removeprefix("hidden.")) for name in layers]
    assert indices == [1 + round(59 / 47 * at) for at in range(48)]


# Born dead, died since and revived in the end.
EVER = {layer: (0, most, 1) for layer, most in DEAD.items()} | {40: (1, 5, 1), 45: (5, 0, 5)}
EVENTS = ("step", "layer", "born dead", "died since", "revived")


def test_deaths_are_those_of_the_first_run_in_layers_that_have_some(figures: Figures) -> None:
    assert columns(figures[f"{FOLDERS['relu', 4]}/dead"], *EVENTS) == [
        (0, "hidden.2", 0, 0, 0),
        (10, "hidden.2", 0, 5, 0),
        (20, "hidden.2", 0, 6, 0),
    ]


def test_deaths_of_the_eight_layers_with_the_most_dead_units(special: Figures) -> None:
    found = columns(special["long/dead"], *EVENTS)
    steps = np.linspace(0, 128, 12).astype(int).tolist()
    expected = []
    for at, step in enumerate(steps):
        for layer in (5, 10, 20, 25, 30, 40, 45, 50):
            born, died, revived = EVER[layer]
            events = (0 if at < 5 else died, 0 if at < (6 if layer == 45 else 8) else -revived)
            expected.append((step, f"hidden.{layer}", born, *events))
    assert found == expected


def test_deaths_have_a_panel_a_layer_in_the_order_of_the_net(special: Figures) -> None:
    by_layer = panels(scene(special["long/dead"]))
    assert list(by_layer) == [f"hidden.{layer}" for layer in (5, 10, 20, 25, 30, 40, 45, 50)]


def test_deaths_stand_above_and_revivals_below_nothing(special: Figures) -> None:
    picture = scene(special["long/dead"])
    by_layer = panels(picture)
    assert len({panel["x"] for panel in by_layer.values()}) == 2
    assert (by_layer["hidden.5"]["width"], by_layer["hidden.5"]["height"]) == (180, 80)
    assert set(texts(picture, "axis-title")) == {STEP, "dead (units)"}
    assert texts(picture, "legend-label") == ["born dead", "died since", "revived"]
    symbols = [symbol["fill"] for symbol in parts(picture, role="legend-symbol")]
    assert symbols == [SKY, VERMILION, GREEN]
    last = {
        layer: {
            told(bar)["event"]: bar for bar in marks(panel, "rect") if told(bar)["step"] == "128"
        }
        for layer, panel in by_layer.items()
    }
    unit = last["hidden.10"]["died since"]["height"] / 9
    nothing = last["hidden.10"]["died since"]["y2"]
    for layer, bars in last.items():
        fills = {event: bar["fill"] for event, bar in bars.items()}
        assert fills == {"born dead": SKY, "died since": VERMILION, "revived": GREEN}
        born, died, revived = EVER[int(layer.removeprefix("hidden."))]
        ends = {event: sorted((bar["y"], bar["y2"])) for event, bar in bars.items()}
        heights = {event: (below - above) / unit for event, (above, below) in ends.items()}
        counts = {"born dead": born, "died since": died, "revived": revived}
        assert heights == pytest.approx(counts)
        assert min(ends["born dead"][0], ends["died since"][0]) == pytest.approx(
            nothing - (born + died) * unit
        )
        assert ends["revived"][0] == pytest.approx(nothing)


def test_updates_are_of_every_step_and_run(sweep: Path, figures: Figures) -> None:
    frames = tables(sweep, ("relu", 12), "gradients")
    for frame in frames:
        frame["ratio"] = frame["update_norm"] / frame["weight_norm"]
    expected = bands(frames, "ratio", ["layer_index"])
    found = columns(figures[f"{FOLDERS['relu', 12]}/updates"], "low", "median", "high")
    assert found == list(expected.values()) == [(1e-3, 1e-3, 1e-3)] * 12


UPDATES = [
    ("hidden.1", 1e-3, 2e-3, 4e-3),
    ("hidden.3", 1e-3, 6.5e-3, 0.012),
    ("readout", 0.05, 0.05, 0.05),
]


def test_updates_leave_out_steps_that_changed_nothing(special: Figures) -> None:
    found = columns(special["holes/updates"], "layer", "low", "median", "high")
    assert found == UPDATES


def test_updates_stand_beside_what_is_usual(special: Figures) -> None:
    picture = scene(special["holes/updates"])
    names = ["hidden.1", "hidden.3", "readout"]
    assert axis(picture, "bottom") == (LAYERS, names)

    def up(value: float) -> Any:
        """From 1e-5 to 1e-1 on 240 points."""
        return pytest.approx(240 - 60 * (math.log10(value) + 5), abs=0.1)

    usual, *spans = marks(picture, "rule")
    assert (usual["y"], usual["stroke"]) == (up(1e-3), ORANGE)
    (label,) = marks(picture, "text")
    assert (label["text"], label["fill"]) == ("usual", ORANGE)
    points = [mark for mark in marks(picture, "symbol") if mark["opacity"] == 1]
    for at, (span, point, row) in enumerate(zip(spans, points, UPDATES, strict=True)):
        layer, low, median, high = row
        assert (told(span)[LAYERS], told(point)["layer"]) == (layer, layer)
        assert span["x"] == point["x"] == 140 * at + 70
        assert sorted((span["y"], span["y2"])) == [up(high), up(low)]
        assert point["y"] == up(median)
        assert (span["stroke"], point["fill"]) == (SKY, BLUE)


@pytest.mark.parametrize("name", ["loss", "accuracy"])
@pytest.mark.parametrize("cell", FOLDERS)
def test_curves_hold_every_step_of_every_run(
    sweep: Path, figures: Figures, cell: tuple[str, int], name: str
) -> None:
    expected = bands(tables(sweep, cell, "steps"), name, ["step"])
    assert columns(figures[f"{FOLDERS[cell]}/{name}"], *CURVE) == [
        (*key, *band) for key, band in expected.items()
    ]
    assert len(expected) == 20


def test_a_curve_has_forty_points_at_most(special: Figures) -> None:
    """128 steps are known as 64 means of two, each at the second of them."""
    loss = [2.3 + (0.2 - 2.3) * min(1.0, 2 * step / 127) for step in range(128)]
    expected = []
    for at in range(40):
        step = 2 * round(63 / 39 * at)
        mean = pytest.approx((loss[step] + loss[step + 1]) / 2, rel=1e-3)
        expected.append((step + 1, mean, mean, mean))
    assert columns(special["long/loss"], *CURVE) == expected


@pytest.mark.parametrize(
    ("file", "title"),
    [
        ("many/loss", "training loss (nats)"),
        ("many/accuracy", "training accuracy (fraction)"),
        ("clipped/clip_coefficient", "clip coefficient (ratio)"),
    ],
)
def test_a_curve_is_a_line_in_a_band_over_the_step(special: Figures, file: str, title: str) -> None:
    picture = scene(special[file])
    assert axis(picture, "bottom")[0] == STEP
    said, labels = axis(picture, "left")
    assert set(said.split(", ")) == {title}
    highest, lowest = float(labels[0]), float(labels[-1])
    lines, areas = marks(picture, "line"), marks(picture, "area")
    assert len(lines) == len(areas) == 12
    expected = {int(row["step"]): row for row in rows(special[file])}
    point = 240 / (highest - lowest)
    steps = {int(told(line)["step"]): line["x"] for line in lines}
    assert list(steps) == list(range(12))
    gaps = np.diff(list(steps.values()))
    assert gaps.tolist() == pytest.approx([gaps[0]] * 11)
    assert gaps[0] > 0
    for line, area in zip(lines, areas, strict=True):
        row = expected[int(told(line)["step"])]
        assert line["y"] == pytest.approx(point * (highest - row["median"]), abs=0.1)
        assert area["y"] == pytest.approx(point * (highest - row["low"]), abs=0.1)
        assert area["y2"] == pytest.approx(point * (highest - row["high"]), abs=0.1)
        assert (line["x"], line["stroke"], area["fill"]) == (area["x"], BLUE, SKY)


def test_what_is_infinite_counts_as_little_as_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        {"columns": {"steps.loss": [*[2.0] * 6, *[last] * 6]}, "config": {"seed": seed}}
        for seed, last in enumerate((math.inf, 1.5, 1.7))
    ]
    path = write_runs(tmp_path / "runs", *runs)
    spec = drawn(monkeypatch, path, tmp_path / "figures")["fabricated/loss"]
    assert columns(spec, *CURVE) == [(step, 2, 2, 2) for step in range(6)] + [
        (step, 1.5, 1.6, 1.7) for step in range(6, 12)
    ]


def test_clipping_is_drawn_where_it_changed_an_update(special: Figures) -> None:
    cells = ("clipped", "holes", "long", "many", "noticed", "unclipped")
    shown = [cell for cell in cells if f"{cell}/clip_coefficient" in special]
    assert shown == ["clipped", "noticed"]
    found = columns(special["clipped/clip_coefficient"], *CURVE)
    assert found == [(step, 0.5, 0.75, 1) for step in range(12)]
    once = {
        step: (low, median, high)
        for step, low, median, high in columns(special["noticed/clip_coefficient"], *CURVE)
    }
    assert once.pop(5) == (0.9899, 0.995, 1)
    assert set(once.values()) == {(1, 1, 1)}


def test_a_net_that_was_only_observed_has_a_profile_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_runs(tmp_path / "runs", {"steps": 0, "probes": 1})
    found = drawn(monkeypatch, path, tmp_path / "figures")
    assert sorted(found) == [
        *("dead_fraction", "decay", "fabricated/profile", "gradients", "verdicts")
    ]
    assert columns(found["fabricated/profile"], *PROFILE[:-1]) == [
        (0, "hidden.1", short(10**-0.02), short(10**-0.02), short(10**-0.02)),
        (0, "readout", 1, 1, 1),
    ]
