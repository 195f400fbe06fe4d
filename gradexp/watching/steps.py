"""The steps of somebody's loop, seen by hooks: after the backward pass and before the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradexp.nn.observed import Observed
from gradexp.optim.parameters import SeparateParameters, ordered
from gradexp.probes.nonfinite import NonFinite
from gradexp.probes.steps import StepProbe, StepValues

Rate = float | Tensor | None


Updates = Callable[[torch.optim.Optimizer], None]


def on_update(optimizers: Sequence[torch.optim.Optimizer], told: Updates) -> list[RemovableHandle]:
    """Tell of every update, before it, until the handles are removed.

    An optimizer that steps with a closure makes the backward pass inside its step: then it is told
    after each call of the closure.
    """

    def hook(
        optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        if closure is None:
            told(optimizer)
            return None

        def called() -> Any:
            value = closure()
            told(optimizer)
            return value

        if len(args) > 1:
            return (args[0], called, *args[2:]), kwargs
        return args, {**kwargs, "closure": called}

    return [one.register_step_pre_hook(hook) for one in optimizers]


class StepWatcher:
    """Measures what each step does; nothing of the loop's is changed, and no step waits.

    Attributes:
        rates: learning rates of the steps since the last `take`.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[Observed],
        scaler: Any,
        before_update: Callable[[Tensor], None] | None,
        *,
        updates_are_told: bool,
    ) -> None:
        weights = [one for layer in layers for one in layer.weights]
        tensors = ordered(weights, module.parameters())
        self._parameters = SeparateParameters(tensors, len({id(one) for one in weights}))
        self._probe = StepProbe(layers, self._parameters)
        self._layers = layers
        self._scaler, self._before_update = scaler, before_update
        self._updates_are_told = updates_are_told
        self.rates: list[Rate] = []
        self._losses: list[Tensor] = []
        self._raw: Tensor | None = None
        self._versions: list[int] = []
        self._pending = self._queued = False
        # One hook, on a weight near the output, whose gradient is there early: the callback that it
        # queues runs when the engine has finished all others, accumulated ones included.
        anchor = next(one for one in reversed(weights) if one.requires_grad)
        self._handle = anchor.register_post_accumulate_grad_hook(self._backward_runs)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Take the hook away."""
        self._handle.remove()

    def _backward_runs(self, _parameter: Tensor) -> None:
        """The first gradient of a backward pass is there: when it ends, all of them are."""
        if not self._queued:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._backward_ended)

    @torch.no_grad()
    def _backward_ended(self) -> None:
        self._queued = False
        self._raw = self._parameters.gradient_norms() / self._scale()
        # Whoever clips or unscales does so in place: what changed between here and the update is
        # told by counters that torch keeps anyway, without a look at any value.
        self._versions = self._gradient_versions()
        if not self._updates_are_told and not self._pending:
            self._begin()

    def _scale(self) -> Tensor | float:
        """What losses are multiplied by, so that half precision does not underflow."""
        if self._scaler is None or not self._scaler.is_enabled():
            return 1.0
        scale = getattr(self._scaler, "_scale", None)  # on the device: asking for it would wait
        return scale if isinstance(scale, Tensor) else float(self._scaler.get_scale())

    def _gradient_versions(self) -> list[int]:
        """Counts how often each gradient was changed in place."""
        return [-1 if one.grad is None else one.grad._version for one in self._parameters.tensors]

    @torch.no_grad()
    def update_comes(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure what the optimizer gets; of several optimizers the first one tells."""
        if self._pending:
            return
        if self._raw is None:  # the backward pass was not seen to end
            self._raw, self._versions = self._parameters.gradient_norms(), []
        if self._before_update:
            self._before_update(self._raw)
        changed = bool(self._versions) and self._versions != self._gradient_versions()
        self._begin(optimizer.param_groups[0]["lr"])
        if changed:
            self._probe.clipped(getattr(optimizer, "grad_scale", None))

    def _begin(self, rate: Rate = None) -> None:
        assert self._raw is not None  # noqa: S101  measured by whoever calls
        self._probe.begin(self._raw)
        self._pending = True
        # A scheduler fills a tensor in place.
        self.rates.append(rate.detach().clone() if isinstance(rate, Tensor) else rate)

    @torch.no_grad()
    def ended(self, loss: Tensor | None, outputs: Tensor | None, targets: Tensor | None) -> bool:
        """A step has ended; False where it made no update yet, as when gradients are accumulated.

        The loss of an update is the mean of those told since the last one.
        """
        if loss is not None:
            self._losses.append(loss.detach().clone())  # a loop may use its memory again
        if not self._pending:
            return False
        now = self._probe.now
        if self._losses:
            told = self._losses
            now.loss = torch.stack(told).mean() if len(told) > 1 else told[0]
        if outputs is not None and targets is not None:
            now.predicted, now.targets = outputs.detach().argmax(1), targets
        self._probe.updated()
        self._losses, self._raw, self._pending = [], None, False
        return True

    def culprit(self, step: int) -> NonFinite:
        """Which gradient of the step at hand is not finite, nearest the output."""
        assert self._raw is not None  # noqa: S101  asked when an update comes
        bad = ~np.isfinite(self._probe.gradient_norms_of(self._raw))
        if not bad.any():
            return NonFinite(step, "gradient", None, None)
        index = int(np.flatnonzero(bad)[-1])
        return NonFinite(step, "gradient", self._layers[index].name, index + 1)

    def take(self) -> tuple[StepValues, list[Rate]]:
        """The figures of the steps since the last call, at least one, on the host."""
        rates, self.rates = self.rates, []
        return self._probe.take(), rates
