"""`gradexp.watch`: gradients, weights and updates at every step, and probes between them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from gradexp.analysis import Diagnosis, conclude, diagnose, load_rules, own_rules
from gradexp.errors import ConfigError, RunError
from gradexp.nn.observed import Observed
from gradexp.probes import PROBES, Prober, ProbeSet, Subject, added_columns
from gradexp.probes.capture import on_call, undisturbed
from gradexp.probes.finding import find_layers
from gradexp.probes.following import Arguments
from gradexp.probes.looking import called, length
from gradexp.probes.nonfinite import (
    NonFinite,
    NonFiniteError,
    first_bad_step,
    locate_by_forward,
    locate_by_norms,
    locate_by_probe,
    operation_of_forward,
)
from gradexp.probes.steps import StepValues
from gradexp.recorder import (
    CHUNK_SECONDS,
    CHUNK_STEPS,
    PROBE_SHARE,
    Ending,
    Life,
    Recording,
    StepTimes,
    environment,
    write_layers,
)
from gradexp.records import write_atomically
from gradexp.watching.losses import Loss, SummedLoss, reduction_of
from gradexp.watching.steps import StepWatcher, on_update
from gradexp.watching.subject import (
    batch_size,
    described,
    free_run,
    number,
    on_device,
    plain_module,
    plain_optimizer,
    to_yaml,
)


def watch(  # noqa: PLR0913  one keyword for every choice
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    *,
    probe: tuple[Any, Any] | None = None,
    loss: Loss | None = None,
    out: str | Path = "runs/watched",
    every: int | Literal["auto"] = "auto",
    gradients_every: int = 1,
    scaler: Any = None,
    stop_on_nonfinite: bool | Literal["replay"] = False,
    rules: str | Path | None = None,
) -> Watch:
    """Watch a module while a loop of your own trains it.

    Args:
        model: any module.
        optimizer: of torch's kind, or several; without one, what clipping did cannot be seen.
        probe: inputs and targets of fixed examples to look at: a tensor each, or a tuple or
            mapping as the module takes them. Without it only gradients, weights and updates are
            recorded.
        loss: of the module's outputs and targets, as the loop has it; needed with `probe`.
        out: the run directory; where one lies already, the next free name with a number.
        every: steps between probes; `auto` keeps their work within 5 % of training's.
        gradients_every: steps between rows of `gradients.csv`.
        scaler: the loop's `GradScaler`, where it has one: figures are those of unscaled gradients.
        stop_on_nonfinite: raise before the update of the first step that is not finite; `replay`
            repeats its forward pass as well and names the operation that made the value.
        rules: a file with limits for the rules by which the run is judged.

    Raises:
        ConfigError: the arguments do not fit together.
        RunError: the directory cannot be written.
    """
    settings = Settings(probe, loss, Path(out), every, gradients_every, stop_on_nonfinite, rules)
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer or []
    return Watch(model, list(optimizers), scaler, settings)


@dataclass(frozen=True)
class Settings:
    """How a loop is watched, see `watch`; checked when it is made, before there is a loop."""

    probe: tuple[Any, Any] | None = None
    loss: Loss | None = None
    out: str | Path = "runs/watched"
    every: int | Literal["auto"] = "auto"
    gradients_every: int = 1
    stop_on_nonfinite: bool | Literal["replay"] = False
    rules: str | Path | None = None

    def __post_init__(self) -> None:
        if self.probe is not None and self.loss is None:
            raise ConfigError("watch: probe= needs loss=, the function of outputs and targets")
        if self.every != "auto" and self.every < 1:
            raise ConfigError(f"watch: every= must be 'auto' or at least 1, got {self.every}")
        if self.gradients_every < 1:
            raise ConfigError(
                f"watch: gradients_every= must be at least 1, got {self.gradients_every}"
            )
        if self.rules is not None:
            load_rules(Path(self.rules))


class Watch:
    """A watched loop: a context, or closed by hand.

    Attributes:
        run: the run directory.
        layers: what is observed; empty until the module is first called, without probe examples.
        steps: updates seen so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: Any,
        settings: Settings,
    ) -> None:
        self._module = plain_module(model)
        self._optimizers = [plain_optimizer(one) for one in optimizers]
        self._scaler, self._settings = scaler, settings
        self._device = next(self._module.parameters()).device
        self.run = free_run(Path(settings.out))
        self._hold = ExitStack()
        self._hold.enter_context(self.run.locked())
        self.layers: list[Observed] = []
        self.steps = 0
        self._written = 0  # steps in the tables
        self._batch: int | None = None
        self._first: NonFinite | None = None
        self._diverged: NonFinite | None = None
        self._prober: Prober | None = None
        self._closed = False
        self._inputs: Any = None
        content = {
            "name": self.run.name,
            "watched": True,
            "own_rules": own_rules(),
            **environment(self._device),
        }
        self._life = Life(self.run, {}, content)
        if settings.rules is not None:
            write_atomically(self.run.rules, Path(settings.rules).read_bytes())
        content = described(self._module, self._optimizers, settings.loss)
        write_atomically(self.run.config, to_yaml(content))
        self._began = time.perf_counter()
        self._looking = False
        self._wanted = settings.probe is not None  # probe examples that were not looked at yet
        self._calls = on_call(model, self._called)
        # Before the layers are known: the first call may be made by a closure, within a step.
        self._updates = on_update(self._optimizers, self._update_comes)

    def _observe(self, inputs: Any) -> None:
        """From now on the layers are known, and their steps measured."""
        self.layers = find_layers(self._module, inputs)
        write_layers(self.run, self.layers)
        self._recording = Recording(
            self.run, self.layers, self._settings.gradients_every, {}, added_columns()
        )
        check = self._refuse_nonfinite if self._settings.stop_on_nonfinite else None
        self._watcher = StepWatcher(
            self._module,
            self.layers,
            self._scaler,
            check,
            updates_are_told=bool(self._optimizers),
        )

    def _update_comes(self, optimizer: torch.optim.Optimizer) -> None:
        if self.layers:
            self._watcher.update_comes(optimizer)

    def _subject(self, loss: Loss, inputs: Any, targets: Any) -> Subject:
        """What probes look at; some examples tell how the loss is reduced."""
        with torch.no_grad(), undisturbed(self._module):
            outputs = called(self._module, inputs)
        summed = SummedLoss(loss, reduction_of(loss, outputs, targets))
        self._life.manifest["loss"] = {"reduction": summed.reduction}
        none: list[Tensor | None] = [None] * len(self.layers)
        return Subject(self._module, self.layers, summed, lambda: none)

    def _called(self, inputs: Arguments) -> None:
        """The loop calls the module: the first time that tells its layers and the batch."""
        if self._looking:
            return
        if self._settings.stop_on_nonfinite:
            self._inputs = inputs
        if self._batch is None:
            self._begin(batch_size(inputs) or 1, inputs)

    def begin(self, examples: int) -> None:
        """Look at the probe examples now, as the module may not be called as a whole, or compiled.

        So many examples the batches of the loop have. Without probe examples nothing is done: then
        it takes a call to know the layers.
        """
        if self._wanted and self._batch is None:
            self._begin(examples, None)

    def _begin(self, examples: int, inputs: Any) -> None:
        self._batch = examples
        if not self._settings.stop_on_nonfinite:
            self._calls.remove()
        if self._wanted:
            self._begin_probing()
        else:
            self._observe(inputs)

    def _begin_probing(self) -> None:
        """Look for the first time: before anything was trained, and with the loop's batch known."""
        probe, loss = self._settings.probe, self._settings.loss
        assert probe is not None  # noqa: S101  asked only where there is one
        assert loss is not None  # noqa: S101  the settings see to it
        self._wanted = False
        inputs, targets = (on_device(part, self._device) for part in probe)
        # In batches as the loop has them: so many fit into memory, and share statistics.
        examples = ProbeSet(inputs, targets, self._batch or length(inputs))
        with self._by_itself():
            some, of_some = next(examples.batches())
            self._observe(some)
            subject = self._subject(loss, some, of_some)
        self._prober = Prober(subject, examples, [entry.make() for entry in PROBES])
        self._look()

    @contextmanager
    def _by_itself(self) -> Iterator[None]:
        """The loop may be in the middle of anything: without gradients, in half precision."""
        self._looking = True
        try:
            with (
                torch.inference_mode(mode=False),
                torch.autocast(self._device.type, enabled=False),
            ):
                yield
        finally:
            self._looking = False

    def step(
        self,
        loss: Tensor | None,
        outputs: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> None:
        """A step of the loop has ended: after the optimizer's, with the loss that was trained on.

        Outputs [n, classes] and targets [n], where given, are recorded as accuracy. Calls between
        two updates, as when gradients are accumulated, count as one step with their mean loss; it
        stays empty where it is not known.

        Raises:
            RunError: the module was not called since it is watched.
        """
        if not self.layers:
            raise RunError("watch.step: the watched module was never called; is it another one?")
        if not self._watcher.ended(loss, outputs, targets):
            return
        self.steps += 1
        due = self._prober is not None and self.steps % self._cadence() == 0
        waiting = self.steps - self._written
        slow = time.perf_counter() - self._began > CHUNK_SECONDS
        if due or waiting >= CHUNK_STEPS or slow:
            self._flush()
        if due:
            self._look()

    def _cadence(self) -> int:
        """Steps between probes: a function of counts, so that a run repeats."""
        if self._settings.every != "auto":
            return self._settings.every
        assert self._prober is not None  # noqa: S101  asked only where there is one
        return max(1, math.ceil(len(self._prober.examples) / (PROBE_SHARE * (self._batch or 1))))

    def _flush(self) -> None:
        """Write the steps that wait."""
        if self.steps == self._written:
            return
        values, rates = self._watcher.take()
        now = time.perf_counter()
        first = self._written
        self._note_nonfinite(values, first)
        times = StepTimes(
            first, lambda _step: 1, lambda step: number(rates[step - first]), now - self._began
        )
        self._recording.event = self._first.step if self._first else None
        self._recording.steps(values, times)
        self._written, self._began = self.steps, now

    def _note_nonfinite(self, values: StepValues, first: int) -> None:
        names = [layer.name for layer in self.layers]
        bad = first_bad_step(values)
        if bad is not None and self._first is None:
            self._first = locate_by_norms(values, bad, first + bad, names)
        if self._diverged is None and values.bad_loss.any():
            step = first + int(np.argmax(values.bad_loss))
            self._diverged = NonFinite(step, "loss", None, None)

    def _look(self) -> None:
        assert self._prober is not None  # noqa: S101  asked only where there is one
        with self._by_itself():
            rows = self._prober.look(self.steps)
        self._recording.probe(rows)
        self._first = self._first or locate_by_probe(self.layers, rows.signal, self.steps)
        self._began = time.perf_counter()

    def _refuse_nonfinite(self, norms: Tensor) -> None:
        """Stop before an update that would spoil the weights."""
        if bool(torch.isfinite(norms).all()):
            return
        found = locate_by_forward(self._module, self.layers, self._inputs, self.steps)
        if found.tensor == "loss":  # forward is finite: it began on the way back
            found = self._watcher.culprit(self.steps)
        if self._settings.stop_on_nonfinite == "replay":
            operation = operation_of_forward(self._module, self._inputs)
            found = dataclasses.replace(found, operation=operation)
        self._first = self._first or found
        raise NonFiniteError(found)

    def diagnosis(self) -> Diagnosis:
        """What is to be said of the run so far."""
        if self._wanted:
            self._begin_probing()
        self._flush()
        return diagnose(self.run)

    def close(self) -> None:
        """A last look; then everything is written, judged, and the hooks are taken away."""
        if self._closed:
            return
        self._closed = True
        try:
            with self._life.on_record():
                self._finish()
        finally:
            self._take_hooks_away()

    def _finish(self) -> None:
        if self._wanted:
            self._begin_probing()
        if not self.layers:
            raise RunError(f"{self.run.path}: the watched module was never called")
        self._flush()
        if self._prober and self.steps % self._cadence():
            self._look()
        self._recording.finish()
        examples = len(self._prober.examples) if self._prober else None
        ending = Ending(examples, self._first, self._diverged)
        conclude(self.run, {"steps": self.steps, **ending.figures()})
        self._life.manifest |= ending.status(f"watched {self.steps} steps")

    def _take_hooks_away(self) -> None:
        for handle in (self._calls, *self._updates):
            handle.remove()
        if self.layers:
            self._watcher.close()
            self._recording.close()
        self._hold.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _where: object
    ) -> None:
        if self._closed or error is None or isinstance(error, KeyboardInterrupt | NonFiniteError):
            self.close()
            return
        self._closed = True
        # What cannot be written any more, on a full disk or from figures of a net in pieces, must
        # not hide the loop's own error.
        with suppress(Exception):
            if self.layers:
                self._flush()
                self._recording.finish()
        self._take_hooks_away()
        with suppress(RunError):
            self._life.failed(error)
            self._life.ended()
