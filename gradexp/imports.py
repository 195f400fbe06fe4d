"""Files of a user's own: run once for what they register, known by their content."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from gradexp.errors import ConfigError

MODULES = "gradexp_parts_"  # how the modules that are made of them begin


def fingerprint(path: Path) -> str:
    """A short hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def module_name(path: Path) -> str:
    """What the module made of a file is called: the same content, the same name."""
    return f"{MODULES}{fingerprint(path)}"


def import_file(path: Path, origin: str) -> None:
    """Run a file that registers parts, unless one with the same content has been run.

    Raises:
        ConfigError: it is not there, or fails; `origin` is where it was named.
    """
    if not path.is_file():
        raise ConfigError(f"{origin}  imports: {path} is not a file")
    name = module_name(path)
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{origin}  imports: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{origin}  imports: {path} failed: {type(error).__name__}: {error}"
        ) from error
    sys.modules[name] = module
