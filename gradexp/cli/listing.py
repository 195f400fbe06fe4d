"""`gradexp list`: what the registries hold."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from rich.table import Table

from gradexp.config import REGISTRIES
from gradexp.errors import ConfigError, nearest
from gradexp.registry import Entry, Option, Registry


def listing(kind: str | None) -> Table:
    """All kinds with the names of their parts, or one kind in detail."""
    if kind in REGISTRIES:
        return _details(REGISTRIES[kind])
    registries = all_registries()
    if kind is None:
        return _overview(registries)
    if kind not in registries:
        raise ConfigError(
            f"unknown kind '{kind}'; allowed: {', '.join(registries)}.{nearest(kind, registries)}"
        )
    return _details(registries[kind])


def all_registries() -> dict[str, Registry[Any]]:
    """Every registry whose parts users choose from, by kind."""
    from gradexp.analysis import RULES
    from gradexp.probes import PROBES

    return {**REGISTRIES, "probes": PROBES, "rules": RULES}


def _overview(registries: dict[str, Registry[Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("kind", no_wrap=True)
    table.add_column("parts")
    for kind, registry in registries.items():
        table.add_row(kind, ", ".join(registry.names()))
    return table


def _details(registry: Registry[Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(registry.kind, no_wrap=True)
    table.add_column("options")
    table.add_column("what it is")
    for entry in registry:
        table.add_row(entry.name, "\n".join(map(_option, entry.options)), _about(entry))
    return table


def _about(entry: Entry[Any]) -> str:
    aliases = f" Also: {', '.join(entry.aliases)}." if entry.aliases else ""
    return f"{entry.help}{f' ({entry.source})' if entry.source else ''}{aliases}"


def _option(option: Option) -> str:
    default = f" = {_shown(option.default)}" if option.has_default else ""
    return f"{option.name}: {_type(option.type)}{default}"


def _shown(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _type(kind: Any) -> str:
    """A type as users write values of it: `float`, `fan_in or fan_out`, `text or null`."""
    if hasattr(kind, "__metadata__"):
        return _type(kind.__origin__)
    if kind is type(None):
        return "null"
    if get_origin(kind) is tuple:
        return "list"
    if get_args(kind):
        return " or ".join(
            _type(one) if isinstance(one, type) else str(one) for one in get_args(kind)
        )
    name: str = kind.__name__
    return {"str": "text", "bool": "true or false"}.get(name, name)
