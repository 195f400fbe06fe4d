"""The commands: each parses, calls one function and prints. Heavy imports stay inside them."""

from __future__ import annotations

from gradexp.cli.app import app


def main() -> None:
    """The console script."""
    app()


__all__ = ["main"]
