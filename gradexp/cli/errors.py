"""How errors reach the user: one message on stderr, an exit code, no traceback."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import typer

from gradexp.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_WRONG_INPUT,
    GradexpError,
    RunError,
)

P = ParamSpec("P")
R = TypeVar("R")


def reporting_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the program's own errors into a message and an exit code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except GradexpError as error:
            typer.echo(str(error), err=True)
            code = EXIT_FAILED if isinstance(error, RunError) else EXIT_WRONG_INPUT
            raise typer.Exit(code) from None
        except KeyboardInterrupt:
            typer.echo(f"\n{to_go_on()}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return wrapped


def to_go_on() -> str:
    """What is said of an interrupted command: how it was called, but for what would begin anew."""
    words = ["gradexp", *(word for word in sys.argv[1:] if word != "--fresh")]
    return f"interrupted; to go on: {shlex.join(words)}"
