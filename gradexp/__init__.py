"""gradexp: find out by experiment what makes gradients vanish or explode, and what cures it.

    gradexp.run("config.yaml")                   # one run
    gradexp.sweep("grid.yaml")                   # a grid of runs
    gradexp.load("sweeps/grid")                  # what lies on disk: frames and verdicts
    gradexp.watch(model, optimizer, ...)         # a model of your own in a loop of your own

All four are loaded when they are first asked for: importing gradexp imports nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradexp.api import Run, Sweep, load, run, sweep
    from gradexp.watching import Watch, watch

__version__ = "0.1.0"
__all__ = ["Run", "Sweep", "Watch", "__version__", "load", "run", "sweep", "watch"]


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name not in __all__:
        raise AttributeError(f"module 'gradexp' has no attribute {name!r}")
    home = "gradexp.watching" if name in {"Watch", "watch"} else "gradexp.api"
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
