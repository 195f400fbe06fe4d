"""`gradexp show`: the layers of a net before anything is trained."""

from __future__ import annotations

from rich.table import Table

from gradexp.config import Config
from gradexp.records import TABLES
from gradexp.train.learner import build_network
from gradexp.train.recording import layer_rows


def layer_table(config: Config) -> Table:
    """The rows of `layers.csv`, and the number of parameters in all."""
    network = build_network(config)
    rows = layer_rows(network.layers(), config.model.activation.name, config.model.norm.name)
    names = TABLES["layers"].column_names
    total = sum(parameter.numel() for parameter in network.parameters())
    caption = f"{total:,} parameters"
    table = Table(box=None, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    for name, value in zip(["#", *names[1:]], rows[0], strict=True):
        table.add_column(name, justify="right" if isinstance(value, int) else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else value for value in row))
    return table
