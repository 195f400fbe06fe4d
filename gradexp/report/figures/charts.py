"""Specifications of the figures of one cell; each draws data of its own name."""

from __future__ import annotations

import altair as alt

from gradexp.report.figures.theme import (
    BLUE,
    GREEN,
    ORANGE,
    ORDERED,
    SKY,
    VERMILION,
    column_title,
)

WIDTH, HEIGHT = 420, 240
PANEL_WIDTH, PANEL_HEIGHT = 180, 80
USUAL_UPDATE = 1e-3
POWER_OF_TEN = "abs(log(datum.value) / LN10 - round(log(datum.value) / LN10)) < 1e-9"
MAP_DECADES = [-8, 2]  # the same colours in every cell, so that maps can be compared


def layers_axis() -> alt.X:
    """Names of layers, input to output."""
    axis = alt.Axis(labelAngle=-45, labelLimit=90, labelOverlap="greedy")
    return alt.X("layer:O", sort=None, title="layer, input to output", axis=axis)


def steps_axis() -> alt.X:
    """The steps that were looked at, side by side."""
    axis = alt.Axis(labelAngle=0, labelOverlap="greedy")
    return alt.X("step:O", title=column_title("signal", "step", "training step"), axis=axis)


def log_axis(column: str, title: str) -> alt.Y:
    """A column on a logarithmic scale."""
    scale = alt.Scale(type="log", nice=False)
    marked = {"condition": {"test": POWER_OF_TEN, "value": 0.6}, "value": 0}
    label = f"{POWER_OF_TEN} ? datum.label : ''"
    axis = alt.Axis(
        format="~e",
        labelExpr=label,
        gridOpacity=marked,
        tickOpacity=marked,
        labelOverlap="greedy",
    )
    return alt.Y(f"{column}:Q", scale=scale, title=title, axis=axis)


def at_least(low: float, high: float) -> alt.Chart:
    """Invisible marks that keep a scale from zooming into differences that are none."""
    ends = alt.Data(values=[{"end": low}, {"end": high}])
    return alt.Chart(ends).mark_point(opacity=0).encode(y="end:Q")


def profile() -> alt.LayerChart:
    """pre_grad_norm against the layer, a line per probe; a triangle below marks an exact zero."""
    title = column_title("signal", "pre_grad_norm", "gradient before the activation")
    color = alt.Color("step:O", scale=alt.Scale(scheme=ORDERED), title="step")
    base = alt.Chart(alt.NamedData("profile")).encode(x=layers_axis(), color=color)
    band = base.mark_area(opacity=0.15).encode(y=log_axis("low", title), y2="high:Q")
    tooltip = ["layer:O", "step:O", alt.Tooltip("median:Q", format=".3~e")]
    line = base.mark_line(point={"size": 20}).encode(y=log_axis("median", title), tooltip=tooltip)
    zero = (
        base.transform_filter("datum.zero == 1")
        .mark_point(shape="triangle-down", filled=True, size=60)
        .encode(y=alt.value(HEIGHT - 6), tooltip=["layer:O", "step:O"])
    )
    return alt.layer(band, line, zero, at_least(1e-3, 1)).properties(width=WIDTH, height=HEIGHT)


def layer_step_map() -> alt.LayerChart:
    """log10 of grad_norm on layers by steps; black is exactly 0, red is not finite."""
    title = column_title("gradients", "grad_norm", "log10 of grad_norm")
    scale = alt.Scale(scheme=ORDERED, domain=MAP_DECADES, clamp=True)
    legend = alt.Legend(orient="top", gradientLength=220)
    y_axis = alt.Axis(labelLimit=110, labelOverlap="greedy")
    upward = alt.Scale(reverse=True)  # the input below, the output above
    y = alt.Y("layer:O", sort=None, scale=upward, title="layer", axis=y_axis)
    base = alt.Chart(alt.NamedData("map")).encode(x=steps_axis(), y=y)
    tooltip = ["layer:O", "step:O", alt.Tooltip("log:Q", format=".2f")]
    values = base.transform_filter("isValid(datum.log)").mark_rect()
    values = values.encode(alt.Color("log:Q", scale=scale, title=title, legend=legend))
    bad = base.transform_filter("isValid(datum.bad)").mark_rect()
    bad_color = alt.condition("datum.bad == 1", alt.value("black"), alt.value(VERMILION))
    return alt.layer(
        values.encode(tooltip=tooltip), bad.encode(color=bad_color, tooltip=tooltip[:2])
    ).properties(width=WIDTH, height=HEIGHT)


def dead() -> alt.FacetChart:
    """Per layer the units dead from birth, died since and revived again; their sum is dead now."""
    colors = {"born dead": SKY, "died since": VERMILION, "revived": GREEN}
    scale = alt.Scale(domain=list(colors), range=list(colors.values()))
    color = alt.Color("event:N", scale=scale, title=None, legend=alt.Legend(orient="top"))
    panel = (
        alt.Chart()
        .mark_bar()
        .encode(
            x=steps_axis(),
            y=alt.Y("count:Q", title=column_title("units", "dead", "dead")),
            color=color,
            tooltip=["layer:O", "step:O", "event:N", "count:Q"],
        )
        .properties(width=PANEL_WIDTH, height=PANEL_HEIGHT)
    )
    in_order = alt.EncodingSortField("index", op="min")  # of the net; `sort=None` is that of names
    by_layer = alt.Facet("layer:O", sort=in_order, title=None)
    facets = panel.facet(facet=by_layer, columns=2, data=alt.NamedData("dead"))
    return facets.transform_fold(list(colors), as_=["event", "count"])


def updates() -> alt.LayerChart:
    """update_norm / weight_norm per layer: median and range over the steps, and what is usual."""
    title = "update / weight (ratio of norms)"
    base = alt.Chart(alt.NamedData("updates")).encode(x=layers_axis())
    span = base.mark_rule(color=SKY, strokeWidth=3).encode(y=log_axis("low", title), y2="high:Q")
    tooltip = [alt.Tooltip(f"{name}:Q", format=".2~e") for name in ("median", "low", "high")]
    point = base.mark_point(color=BLUE, filled=True, size=50, opacity=1)
    point = point.encode(y=log_axis("median", title), tooltip=["layer:O", *tooltip])
    usual = alt.Chart(alt.Data(values=[{"end": USUAL_UPDATE, "label": "usual"}])).encode(y="end:Q")
    line = usual.mark_rule(color=ORANGE, strokeDash=[4, 3])
    label = usual.mark_text(color=ORANGE, align="right", dy=-7).encode(
        x=alt.value(WIDTH - 2), text="label:N"
    )
    layers = alt.layer(line, label, span, point, at_least(1e-5, 1e-1))
    return layers.properties(width=WIDTH, height=HEIGHT)


def loss() -> alt.LayerChart:
    """Training loss over time."""
    return _curve("loss", "training loss")


def accuracy() -> alt.LayerChart:
    """Training accuracy over time."""
    return _curve("accuracy", "training accuracy")


def clip_coefficient() -> alt.LayerChart:
    """How much clipping left of the gradient, over time."""
    return _curve("clip_coefficient", "clip coefficient")


def _curve(column: str, words: str) -> alt.LayerChart:
    """A column of steps.csv: median and range over the runs."""
    title = column_title("steps", column, words)
    x = alt.X("step:Q", title=column_title("steps", "step", "training step"))
    base = alt.Chart(alt.NamedData(column)).encode(x=x)
    band = base.mark_area(color=SKY, opacity=0.3).encode(y=alt.Y("low:Q", title=title), y2="high:Q")
    tooltip = ["step:Q", alt.Tooltip("median:Q", format=".3~g")]
    line = base.mark_line(color=BLUE).encode(y=alt.Y("median:Q", title=title), tooltip=tooltip)
    return alt.layer(band, line).properties(width=WIDTH, height=HEIGHT)
