"""A watch for Hugging Face: `Trainer(..., callbacks=[GradexpCallback(probe=..., loss=...)])`."""

from __future__ import annotations

import sys
import traceback
import weakref
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from gradexp.errors import ConfigError, RunError
from gradexp.probes.capture import on_return
from gradexp.probes.following import Arguments
from gradexp.watching.callback import WatchCallback
from gradexp.watching.watching import Watch


class GradexpCallback(WatchCallback, TrainerCallback):  # type: ignore[misc]  # it is not typed here
    """Watches what a `Trainer` trains; takes the settings of `gradexp.watch`.

    The losses are those in the model's outputs, as the trainer takes them from there; they stay
    empty where the outputs have none, as with `compute_loss_func` or `label_smoothing_factor`.

    The run is closed when training ends. A `Trainer` tells nobody of an error: used as a context
    around `trainer.train()`, the callback leaves it on record at once; else when the callback is no
    longer needed, or the program ends.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._losses = StepLosses()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _where: object
    ) -> None:
        if error is None:
            self._end()
        else:
            self._failed(error)

    def on_train_begin(
        self, args: Any, state: Any, _control: Any, *, model: Any, optimizer: Any, **_others: Any
    ) -> None:
        """Begin to watch."""
        # The trainer begins anew by itself when a batch was too large (`auto_find_batch_size`).
        self._failed(RunError("training began anew before it had ended"))
        if not state.is_world_process_zero:
            return
        if args.n_gpu > 1:
            raise ConfigError(
                "GradexpCallback: copies of a model in one process (DataParallel) cannot be "
                "watched; show the program one device, or start one process for each"
            )
        watch = self._begin(model, [optimizer], getattr(optimizer, "scaler", None))
        self._losses = StepLosses()
        watch.begin(state.train_batch_size)
        handle = on_return(model, self._losses.returned)
        self._hold.callback(handle.remove)
        weakref.finalize(self, _abandoned, watch, handle)

    def on_step_begin(self, *_arguments: Any, **_others: Any) -> None:
        """Forget what was called since the last update: evaluations, probes."""
        self._losses.clear()

    def on_substep_end(self, *_arguments: Any, **_others: Any) -> None:
        """A batch has ended whose gradients are accumulated."""
        self._losses.batch_ended()

    def on_step_end(self, *_arguments: Any, **_others: Any) -> None:
        """Tell of a step."""
        self._losses.batch_ended()
        if self.watch:
            self.watch.step(self._losses.total())

    def on_log(self, *_arguments: Any, logs: Mapping[str, Any], **_others: Any) -> None:
        """Close the run with the last figures: afterwards the best weights may be put back."""
        if "train_loss" in logs:
            self._end()

    def on_train_end(self, *_arguments: Any, **_others: Any) -> None:
        """Close the run."""
        self._end()


class StepLosses:
    """The losses of the batches that make one step, taken from what a model returns."""

    def __init__(self) -> None:
        self._returned: list[Tensor] = []
        self._of_batches: list[Tensor | None] = []
        self._shares = False

    def clear(self) -> None:
        """A step begins."""
        self._returned, self._of_batches = [], []

    def returned(self, arguments: Arguments, output: Any) -> None:
        """The model was called; told how many items all batches have, it returns its share."""
        loss = output.get("loss") if isinstance(output, Mapping) else output[0]
        if isinstance(loss, Tensor) and not loss.dim() and loss.requires_grad:  # it is trained on
            self._returned.append(loss.detach())
            self._shares = "num_items_in_batch" in arguments.kwargs

    def batch_ended(self) -> None:
        """Of a batch that took several calls nobody knows what was made of their losses."""
        self._of_batches.append(self._returned[0] if len(self._returned) == 1 else None)
        self._returned = []

    def total(self) -> Tensor | None:
        """Of all batches, shares summed and means averaged; None where one is not known."""
        known = [one for one in self._of_batches if one is not None]
        if not known or len(known) < len(self._of_batches):
            return None
        losses = torch.stack(known)
        return losses.sum() if self._shares else losses.mean()


def _abandoned(watch: Watch, handle: RemovableHandle) -> None:
    """Nothing refers to the callback any more, or the program ends: is the run closed?"""
    handle.remove()
    error = getattr(sys, "last_value", None)
    if error is None or not _passed_through_trainer(error):
        error = RunError("training did not reach its end")
    watch.__exit__(type(error), error, error.__traceback__)


def _passed_through_trainer(error: BaseException) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "transformers.trainer" for frame, _ in frames)
