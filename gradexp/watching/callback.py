"""What the callbacks of trainers share: settings that wait until there is something to watch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from gradexp.errors import ConfigError
from gradexp.watching.losses import Loss
from gradexp.watching.watching import Watch, watch


class WatchCallback:
    """A watch from the beginning of a training to its end; see `gradexp.watch` for the settings.

    Attributes:
        watch: the newest one; None before training begins, and in all processes but the first.
    """

    def __init__(  # noqa: PLR0913  one keyword for every choice
        self,
        *,
        probe: tuple[Any, Any] | None = None,
        loss: Loss | None = None,
        out: str | Path = "runs/watched",
        every: int | Literal["auto"] = "auto",
        gradients_every: int = 1,
        stop_on_nonfinite: bool = False,
        rules: str | Path | None = None,
    ) -> None:
        if probe is not None and loss is None:
            raise ConfigError("GradexpCallback: probe= needs loss=, of outputs and targets")
        self.watch: Watch | None = None
        self._hold = ExitStack()  # what is undone with the end of the watch
        self._settings: dict[str, Any] = {
            "probe": probe,
            "loss": loss,
            "out": out,
            "every": every,
            "gradients_every": gradients_every,
            "stop_on_nonfinite": stop_on_nonfinite,
            "rules": rules,
        }

    def _begin(
        self, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], scaler: Any
    ) -> Watch:
        self.watch = watch(module, optimizers, scaler=scaler, **self._settings)
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
