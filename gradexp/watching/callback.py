"""What the callbacks of trainers share: settings that wait until there is something to watch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from gradexp.watching.watching import Settings, Watch


class WatchCallback:
    """A watch from the beginning of a training to its end; see `gradexp.watch` for the settings.

    Attributes:
        watch: the newest one; None before training begins, and in all processes but the first.
    """

    def __init__(self, **settings: Any) -> None:
        self.watch: Watch | None = None
        self._hold = ExitStack()  # what is undone with the end of the watch
        self._settings = Settings(**settings)

    def _begin(
        self, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], scaler: Any
    ) -> Watch:
        self.watch = Watch(module, optimizers, scaler, self._settings)
        return self.watch

    def _end(self) -> None:
        """Training has ended; telling it twice does no harm."""
        with self._hold:
            if self.watch:
                self.watch.close()

    def _failed(self, error: BaseException) -> None:
        """An error ends training: it is left on record."""
        with self._hold:
            if self.watch:
                self.watch.__exit__(type(error), error, error.__traceback__)
