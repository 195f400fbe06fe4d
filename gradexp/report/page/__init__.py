"""The report as one self-contained HTML page: no network, opens by double click."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gradexp.report.figures import VEGA_LITE
from gradexp.report.figures.layout import Layout
from gradexp.report.figures.theme import VERDICT_COLORS, config
from gradexp.report.output import write_output
from gradexp.report.overview import Overview
from gradexp.report.page.content import page_content
from gradexp.report.rows import LEGEND, comparison_rows, overview_rows

HERE = Path(__file__).parent
INK = {"light": ("#1a1d21", "#d8dce1"), "dark": ("#e6e8eb", "#474c53")}  # text, lines


def write_page(overview: Overview, path: Path) -> list[str]:
    """Write the page; returns what was done, one line each."""
    data = page_content(Layout(overview))
    content = render(overview, data).encode()
    write_output(path, content)
    lines = [f"page ({len(content) / 1e6:.1f} MB): {path}"]
    shown = sum(bool(cell["figures"]) for cell in data["cells"])
    if shown < len(overview.cells):
        lines.append(
            f"The page shows the figures of {shown} of {len(overview.cells)} cells, the sickest; "
            "report fewer runs to see those of others."
        )
    return lines


def render(overview: Overview, data: dict[str, Any]) -> str:
    """The whole page around its data. Everything that came from a config is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    place = Layout(overview)
    themes = {name: config(ink=ink, faint=faint) for name, (ink, faint) in INK.items()}
    return environment.get_template("page.html.j2").render(
        overview=overview,
        place=place,
        places={(place.row(c), place.column(c)): (i, c) for i, c in enumerate(overview.cells)},
        table=overview_rows(overview),
        legend=LEGEND,
        degradation=comparison_rows(overview.degradation),
        comparisons=comparison_rows(overview.comparisons),
        colors=VERDICT_COLORS,
        data=_json(data | {"themes": themes}),
        style=_inline("page.css"),
        libraries=_libraries(),
        script=_inline("page.js"),
    )


def _libraries() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    exported = "window.vegaEmbed = vegaEmbed;"
    return Markup(vl_convert.javascript_bundle(exported, vl_version=VEGA_LITE))  # noqa: S704  a library


def _inline(name: str) -> Markup:
    return Markup((HERE / name).read_text())  # noqa: S704  the project's own files


def _json(content: Any) -> Markup:
    """JSON inside a script element: no character in it can end the element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704  no markup can remain
