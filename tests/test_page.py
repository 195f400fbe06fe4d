"""The page in a real browser: no error, no network, evidence on a click, any screen, any theme."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gradexp.report import make_report
from tests.chromium import EXECUTABLE, Page
from tests.fabricated_runs import Fabricated

HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"

needs_chromium = pytest.mark.skipif(
    EXECUTABLE is None, reason="Chromium is not installed: apt-get install chromium"
)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page over two activations and two depths; one activation is a hostile piece of HTML."""
    path = tmp_path_factory.mktemp("page")
    for activation in ("relu", HOSTILE):
        for depth in (4, 12):
            sick = activation != "relu" and depth == 12
            shown: dict[str, Any] = {"decay": 0.6} if sick else {"dead": {2: [1, 2, 4, 4, 3]}}
            if sick:
                shown |= {"loss": (2.31, 2.3), "accuracy": (0.1, 0.1)}
            config = {"model": {"activation": {"name": activation}}, "note": HOSTILE}
            run = path / "runs" / f"{len(activation)}-{depth}"
            Fabricated(depth=depth, config=config, **shown).write(run)
    make_report([path], html=path / "page.html")
    return path / "page.html"


@pytest.fixture
def page(page_file: Path, tmp_path: Path) -> Iterator[Page]:
    with Page(tmp_path / "profile") as page:
        page.look(1280, 900, "light")
        page.open(page_file.as_uri())
        yield page


class Elements(HTMLParser):
    """The elements of a page that could load something, with what they would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        links = [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        self.outside += [link for link in links if not link.startswith("data:")]


def test_everything_is_in_the_one_file(page_file: Path) -> None:
    elements = Elements()
    elements.feed(page_file.read_text())
    assert elements.outside == []
    assert elements.tags.count("script") == 2
    assert "img" not in elements.tags
    assert page_file.stat().st_size < 1_500_000


def test_the_embedded_data_is_strict_json(page_file: Path) -> None:
    found = re.search(r'id="data">(.*?)</script>', page_file.read_text(), re.DOTALL)
    assert found is not None
    content = json.loads(found[1], parse_constant=pytest.fail)
    assert len(content["cells"]) == 4
    assert content["cells"][content["first"]]["verdicts"][0]["name"] == "vanishing"


@needs_chromium
def test_it_loads_without_errors_or_requests(page: Page, page_file: Path) -> None:
    kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event for event in page.events if event["method"] in kinds] == []
    requests = [e for e in page.events if e["method"] == "Network.requestWillBeSent"]
    assert [e["params"]["request"]["url"] for e in requests] == [page_file.as_uri()]
    assert page.evaluate("document.querySelectorAll('#across svg').length") >= 4


@needs_chromium
def test_nothing_from_a_config_runs_or_becomes_markup(page: Page) -> None:
    assert page.evaluate("window.broken === undefined")
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert HOSTILE in page.evaluate("document.querySelector('.cells').textContent")
    assert HOSTILE in page.evaluate("document.querySelector('#cell-title').textContent")


@needs_chromium
def test_a_click_on_a_cell_shows_its_evidence(page: Page) -> None:
    page.evaluate("[...document.querySelectorAll('.cells button.healthy')].at(-1).click()")
    page.wait_for("document.querySelectorAll('#cell-figures svg').length === 6")
    assert page.evaluate("document.querySelector('#cell-verdicts h3').textContent") == "healthy"
    page.evaluate("document.querySelector('.cells button.vanishing').click()")
    page.wait_for("document.querySelector('#cell-verdicts').textContent.includes('vanishing')")
    text = page.evaluate("document.querySelector('#evidence').textContent")
    assert "falls by 6.6 decades" in text
    assert "model.depth" in text
    assert page.evaluate("document.querySelector('.vanishing').ariaPressed") == "true"


@needs_chromium
def test_the_figures_show_the_data_of_their_cell(page: Page) -> None:
    page.evaluate("document.querySelector('.cells button.healthy').click()")
    page.wait_for("document.querySelector('#cell-figures').textContent.includes('born dead')")
    marks = "#cell-figures [aria-label='Gradient over depth'] .mark-line path"
    page.wait_for(f'document.querySelectorAll("{marks}").length > 0')


@needs_chromium
def test_a_cell_can_be_chosen_by_keyboard(page: Page) -> None:
    page.evaluate("document.querySelector('.cells button').focus()")
    page.key("ArrowDown")
    assert page.evaluate("document.activeElement.className").startswith("healthy")
    page.key("ArrowRight")
    page.key("Enter")
    chosen = page.evaluate("document.activeElement.id")
    assert page.evaluate("location.hash") == f"#{chosen}"
    assert page.evaluate("document.activeElement.ariaPressed") == "true"


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_reads_on_any_screen_in_light_and_dark(page: Page, width: int, scheme: str) -> None:
    page.look(width, 900, scheme)
    page.wait_for(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert _contrast(page, "h1") >= 7
    assert _contrast(page, ".hint") >= 4.5
    for verdict in ("healthy", "vanishing"):
        assert _contrast(page, f".cells button.{verdict}") >= 4.5
    ink = _luminance("#across .role-axis-title text", "fill")
    page.wait_for(f"{ink} {'<' if scheme == 'light' else '>'} 0.2")


def _contrast(page: Page, selector: str) -> float:
    """The contrast of text with what lies behind it, from 1 to 21 (WCAG 2)."""
    own, body = (_luminance(place, "background-color") for place in (selector, "body"))
    text, ground = page.evaluate(_luminance(selector, "color")), page.evaluate(f"{own} ?? {body}")
    return float((max(text, ground) + 0.05) / (min(text, ground) + 0.05))


def _luminance(selector: str, style: str) -> str:
    return f"""(() => {{
        const color = getComputedStyle(document.querySelector("{selector}"))["{style}"];
        const [red, green, blue, alpha] = color.match(/[\\d.]+/g).map(Number);
        if (alpha === 0) return null;
        const part = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        return 0.2126 * part(red) + 0.7152 * part(green) + 0.0722 * part(blue);
    }})()"""
