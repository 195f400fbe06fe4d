"""`gradexp show`: the layers of a net before anything is trained."""

from __future__ import annotations

from rich.console import JustifyMethod
from rich.table import Table

from gradexp.config import Config
from gradexp.train.learner import build_module

SHOWN = (
    "layer_index",
    "layer",
    "kind",
    "fan_in",
    "fan_out",
    "units",
    "parameters",
    "activation",
    "norm",
)


def layer_table(config: Config) -> Table:
    """The rows of `layers.csv`, and the number of parameters in all."""
    module, layers = build_module(config)
    rows = [layer.row(index) for index, layer in enumerate(layers, start=1)]
    total = sum(parameter.numel() for parameter in module.parameters())
    caption = f"{total:,} parameters"
    table = Table(box=None, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    for name in SHOWN:
        justify: JustifyMethod = "right" if isinstance(rows[0][name], int) else "left"
        table.add_column("#" if name == "layer_index" else name, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(_text(row[name]) for name in SHOWN))
    return table


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
