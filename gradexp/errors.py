"""The errors a user can cause or meet; anything else that escapes is a fault of the program."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_FAILED, EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 1, 2, 130


class GradexpError(Exception):
    """An error whose message is meant for the user, without a traceback."""


class ConfigError(GradexpError):
    """Wrong input: a config, an override or an argument. Exit code 2."""


class DataError(GradexpError):
    """A data set is missing, corrupt or cannot be downloaded. Exit code 2."""


class RunError(GradexpError):
    """A run could not be carried out, or a run directory cannot be used. Exit code 1."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A closing sentence that names the nearest allowed word (case ignored), or nothing."""
    known = {one.lower(): one for one in allowed}
    matches = get_close_matches(word.lower(), list(known), n=1, cutoff=0.55)
    return f" Did you mean '{known[matches[0]]}'?" if matches else ""
