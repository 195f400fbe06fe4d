"""A watch for Lightning: `Trainer(callbacks=[GradexpCallback(probe=..., loss=..., out=...)])`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from gradexp.errors import ConfigError
from gradexp.watching.callback import WatchCallback
from gradexp.watching.subject import batch_size


class GradexpCallback(WatchCallback, Callback):  # type: ignore[misc]  # it is not typed here
    """Watches the training of a `LightningModule`; takes the settings of `gradexp.watch`.

    The losses are those that `training_step` returns. The run is closed when training ends; an
    error that ends it is left on record.

    Args:
        module: the dotted name of the part to watch, such as `net`; without it, the
            `LightningModule` itself.
    """

    def __init__(self, *, module: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self._part = module

    # Training starts after the validation that only tries out whether all is well, and ends before
    # the module is moved away from its device.
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch."""
        if trainer.is_global_zero:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self._begin(self._watched(trainer, pl_module), trainer.optimizers, scaler)

    def _watched(self, trainer: Trainer, whole: nn.Module) -> nn.Module:
        if self._part is not None:
            try:
                return whole.get_submodule(self._part)
            except AttributeError as error:
                raise ConfigError(f"GradexpCallback: module={self._part!r}: {error}") from None
        name = type(whole).__name__
        if type(whole).forward is LightningModule.forward:
            raise ConfigError(f"GradexpCallback: {name} has no forward; name a part of it: module=")
        # What spreads it over processes calls it with what `training_step` takes.
        wrapped = trainer.strategy.model is not whole
        if wrapped and (self._settings.probe is None or self._settings.stop_on_nonfinite):
            strategy = type(trainer.strategy).__name__
            raise ConfigError(
                f"GradexpCallback: {strategy} does not call {name} as it is; give probe= and no "
                "stop_on_nonfinite=, or name a part of it: module="
            )
        return whole

    def on_train_batch_start(
        self,
        trainer: Trainer,  # noqa: ARG002  by these names they are called
        pl_module: LightningModule,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Begin with the first batch; `training_step` may call only parts of the module."""
        if self.watch and self._part is None:
            self.watch.begin(batch_size(batch) or 1)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Tell of a step, or of a batch whose gradients are accumulated."""
        if self.watch is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None and pl_module.automatic_optimization:
            loss = loss * trainer.accumulate_grad_batches  # Lightning has divided it
        self.watch.step(loss)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Close the run."""
        self._end()

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        """Leave the error on record."""
        self._failed(exception)
