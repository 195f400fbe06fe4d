"""The numbers of the page as the browser shows them: the table of cells, figures, statistics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradexp.report import make_report
from gradexp.report.figures.layout import Layout
from gradexp.report.overview import overview
from gradexp.report.page import content, write_page
from tests.chromium import EXECUTABLE, Page
from tests.fabricated_runs import GOOD, Fabricated
from tests.fabricated_sweep import ODD, write_sweep

pytestmark = [
    pytest.mark.xdist_group("page numbers"),
    pytest.mark.skipif(EXECUTABLE is None, reason="Chromium is not installed"),
]

NAMES = ["Gradient over depth", "Gradient over depth and time", "Size of an update"]
CURVES = ["Training loss", "Training accuracy"]
# Rows by activation, columns by depth: the verdict and the training accuracy.
TABLE = {
    "relu": ["healthynot trained", "healthy90.0 %", "vanishing10.0 %"],
    "tanh": ["healthy95.0 %", "healthy99.0 %", "saturated45.0 %"],
    ODD: ["", "diverged20.0 %", "stalled20.0 %"],
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep, and beside it a net that was not trained and one with a gradient of 0."""
    path = write_sweep(tmp_path_factory.mktemp("page"))
    small: dict[str, Any] = {"depth": 2, "units": 10, "decay": 0}
    Fabricated(**small, steps=0, probes=1).write(path / "runs" / "relu-2-0")
    grads = np.ones((12, 2))
    grads[3, 0] = 0
    grads[:, 1] = 0.01
    columns = {"gradients.grad_norm": grads}
    shown = {**small, **GOOD, "steps": 12, "probes": 2, "columns": columns}
    Fabricated(**shown, activation="tanh").write(path / "runs" / "tanh-2-0")
    return path


@pytest.fixture(scope="module")
def page(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    file = sweep / "page.html"
    make_report([sweep], html=file)
    with Page(tmp_path_factory.mktemp("profile")) as page:
        page.look(1280, 900, "light")
        page.open(file.as_uri())
        yield page


def seen(page: Page, selector: str, what: str = "textContent") -> list[Any]:
    """Something of every element that a selector finds, in the order of the page."""
    return list(page.evaluate(f"[...document.querySelectorAll({selector!r})].map((e) => e.{what})"))


def choose(page: Page, row: int, column: int) -> None:
    """Click on a cell of the table, counted from 0, and wait for all its figures."""
    cell = f".cells tbody tr:nth-child({row + 1}) td:nth-of-type({column + 1}) button"
    page.evaluate(f"document.querySelector('{cell}').click()")
    figures = "[...document.querySelectorAll('#cell-figures figure')]"
    page.wait_for(f"{figures}.every((f) => f.querySelector('svg .mark-group.role-frame'))")


def drawn(page: Page, figure: str, mark: str) -> list[dict[str, Any]]:
    """The marks of a figure of the chosen cell: what is told of each, its colour and place."""
    found = page.evaluate(f"""
        [...document.querySelectorAll("#cell-figures [aria-label='{figure}'] .mark-{mark} path")]
        .map((path) => {{
            const {{ x, y, width, height }} = path.getBoundingClientRect();
            const [said, fill] = ["aria-label", "fill"].map((name) => path.getAttribute(name));
            return {{ said, fill, x, y, width, height }};
        }})""")
    for one in found:
        parts = one["said"].replace("\N{MINUS SIGN}", "-").split("; ")
        one["said"] = dict(part.split(": ", 1) for part in parts)
    return list(found)


def test_the_table_has_depths_to_the_right_and_activations_down(page: Page) -> None:
    assert seen(page, ".cells thead th") == ["", "depth 2", "depth 4", "depth 12"]
    assert seen(page, ".cells tbody th") == list(TABLE)
    assert seen(page, ".cells tbody td") == [text for row in TABLE.values() for text in row]
    assert seen(page, ".cells button", "dataset.cell") == [str(at) for at in range(8)]
    assert seen(page, ".cells button", "id") == [f"cell-{at}" for at in range(8)]
    levels = ["note", "note", "critical", "note", "note", "warning", "critical", "critical"]
    assert [name.split()[1] for name in seen(page, ".cells button", "className")] == levels


def test_the_sickest_cell_comes_first(page: Page, sweep: Path) -> None:
    page.open(f"{(sweep / 'page.html').as_uri()}?again")  # whichever cell was chosen before
    assert seen(page, "[aria-pressed=true]", "id") == ["cell-6"]
    assert seen(page, "#cell-title") == [f"activation {ODD}, depth 4"]
    assert seen(page, "#cell-verdicts h3") == [
        *("diverged · critical · 1 of 2 runs", "exploding · critical · 1 of 2 runs"),
        "stalled · critical · 1 of 2 runs",
    ]
    assert seen(page, "#cell-runs li") == [f"{ODD}-4-0: diverged", f"{ODD}-4-1: finished"]


@pytest.mark.parametrize(
    ("row", "column", "title", "figures"),
    [
        (0, 0, "activation relu, depth 2", NAMES[:1]),
        (0, 1, "activation relu, depth 4", [*NAMES[:2], "Dead units over time", NAMES[2], *CURVES]),
        (1, 2, "activation tanh, depth 12", [*NAMES, *CURVES]),
        (2, 2, f"activation {ODD}, depth 12", [*NAMES[1:], *CURVES]),
    ],
)
def test_a_cell_has_the_figures_that_it_has_data_for(
    page: Page, row: int, column: int, title: str, figures: list[str]
) -> None:
    choose(page, row, column)
    assert seen(page, "#cell-title") == [title]
    assert seen(page, "#cell-figures h3") == figures
    assert seen(page, "#cell-figures figure", "ariaLabel") == figures


def test_a_map_has_steps_to_the_right_the_input_below_and_black_for_zero(page: Page) -> None:
    choose(page, 1, 0)
    boxes = drawn(page, NAMES[1], "rect.role-mark")
    assert len(boxes) == 24
    by_place = {(int(box["said"]["step"]), box["said"]["layer"]): box for box in boxes}
    zero = by_place[3, "hidden.1"]
    assert zero["fill"] == "black"
    assert "log" not in zero["said"]
    for (step, layer), box in by_place.items():
        assert box["x"] - zero["x"] == pytest.approx(35 * (step - 3), abs=0.1)
        assert box["y"] - zero["y"] == pytest.approx(-120 * (layer == "readout"), abs=0.1)
        assert (box["width"], box["height"]) == pytest.approx((35, 120), abs=0.1)
        if box is not zero:
            log = box["said"]["log10 of grad_norm (loss / weight)"]
            assert log == ("-2" if layer == "readout" else "0")


def test_a_map_is_red_where_the_gradient_is_not_finite(page: Page) -> None:
    choose(page, 2, 1)
    boxes = drawn(page, NAMES[1], "rect.role-mark")
    red = {int(box["said"]["step"]) for box in boxes if box["fill"] == "#d55e00"}
    assert red == {5, 6, 8, 9, 10, 11, 13, 14, 15, 16, 18, 19}
    assert sum(box["fill"] == "#d55e00" for box in boxes) == 4 * len(red)
    other = {int(box["said"]["step"]) for box in boxes if box["fill"] != "#d55e00"}
    assert other == {0, 1, 3, 4}


def test_a_profile_holds_every_probe_and_layer(page: Page) -> None:
    """Over three runs that lose 0, 0.1 and 0.2 decades a layer."""
    choose(page, 0, 1)
    points = drawn(page, NAMES[0], "symbol.role-mark")
    found = [
        (int(point["said"]["step"]), point["said"]["layer"], float(point["said"]["median"]))
        for point in points
        if "layer" in point["said"]
    ]
    assert found == [
        (step, layer, value)
        for step in (0, 10, 20)
        for layer, value in (
            *(("hidden.1", 0.5012), ("hidden.2", 0.631), ("hidden.3", 0.7943), ("readout", 1)),
        )
    ]
    across = [point["x"] for point in points[:4]]
    assert across == sorted(across)
    up = [point["y"] for point in points[:4]]
    assert up == sorted(up, reverse=True)


def test_deaths_of_the_first_run(page: Page) -> None:
    choose(page, 0, 1)
    bars = drawn(page, "Dead units over time", "rect.role-mark")
    found = [(bar["said"]["layer"], bar["said"]["step"], bar["said"]["event"]) for bar in bars]
    events = ("born dead", "died since", "revived")
    assert found == [("hidden.2", step, event) for step in ("0", "10", "20") for event in events]
    counts = [bar["said"]["count"] for bar in bars]
    assert counts == ["0", "0", "0", "0", "5", "0", "0", "6", "0"]


def test_boxes_across_cells_show_their_medians(page: Page) -> None:
    found = {}
    for at, title in enumerate(seen(page, "#across h3"), start=1):
        figure = f"#across figure:nth-child({at}) .mark-text.role-mark text"
        found[title] = [text.replace("\N{MINUS SIGN}", "-") for text in seen(page, figure)]
    assert found == {
        "Decay": ["0.00", "0.10", "0.30", "0.00", "0.00", "0.00", "-0.30"],
        "Train accuracy": ["90.0", "10.0", "95.0", "99.0", "45.0", "20.0", "20.0"],
        "Test accuracy": ["85.0", "10.0", "93.0", "80.0", "35.0", "30.0"],
        "Dead units": ["0.0", "20.0", "0.0"],
        "Gradient over depth": [],
    }
    axis = "#across figure:nth-child(1) .role-axis-label text"
    assert sorted(seen(page, axis)) == sorted(["2", "4", "12", "relu", "tanh", ODD])
    assert seen(page, "#across figure.wide h3") == ["Gradient over depth"]


def test_the_background_of_the_page_shows_through_its_figures(page: Page) -> None:
    assert set(seen(page, "figure svg", "style.backgroundColor")) == {"transparent"}


def test_statistics_show_what_is_missing_as_a_dash(page: Page) -> None:
    table = "[aria-labelledby=statistics] tbody tr"
    assert seen(page, table, "innerText.replaceAll('\\t', ', ')") == [
        "relu, 2, 1, 0.00, 0.0, -, -, healthy",
        "relu, 4, 3, 0.10 ±0.10, 20.0 ±5.0, 90.0 ±7.0, 85.0 ±10.0, healthy",
        "relu, 12, 3, 0.30 ±0.15, 0.0 ±0.0, 10.0 ±42.5, 10.0 ±40.0, vanishing 2/3 !!",
        "tanh, 2, 1, 0.00, -, 95.0, 93.0, healthy *",
        "tanh, 4, 1, 0.00, -, 99.0, 80.0, healthy",
        "tanh, 12, 2, 0.00 ±0.00, -, 45.0 ±5.0, 35.0 ±5.0, saturated !",
        f"{ODD}, 4, 2, -0.30 ±0.10, -, 20.0 ±10.0, 30.0, diverged 1/2 !!",
        f"{ODD}, 12, 1, -, -, 20.0, -, stalled !!",
    ]


def test_cells_beyond_the_size_of_a_page_have_no_figures(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for the three sickest: one diverged, one vanishing, one saturated."""
    runs = overview([sweep])

    def cells() -> list[dict[str, Any]]:
        return list(content.page_content(Layout(runs))["cells"])

    sizes = [len(json.dumps(cell["figures"])) for cell in cells()]
    assert min(sizes) > 100
    for room, shown in (
        (sizes[6] + sizes[2] + sizes[5] - 1, [2, 6]),
        (sizes[6] + sizes[2] + sizes[5], [2, 5, 6]),
    ):
        monkeypatch.setattr(content, "MAX_BYTES", room)
        assert [at for at, cell in enumerate(cells()) if cell["figures"]] == shown
    _, said = write_page(runs, tmp_path / "page.html")
    assert said == (
        "The page shows the figures of 3 of 8 cells, the sickest; "
        "report fewer runs to see those of others."
    )
