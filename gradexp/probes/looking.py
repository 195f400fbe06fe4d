"""One probe: a module looks at a fixed set of examples, in training mode, and leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gradexp.errors import RunError
from gradexp.nn.observed import Observed
from gradexp.probes.capture import Capture, captured, in_units, undisturbed
from gradexp.probes.following import Arguments, tensors_of
from gradexp.probes.registry import Look, Probe, Stack
from gradexp.probes.touched import Touched
from gradexp.probes.units import Units
from gradexp.records.tables import Value

VALUES_AT_ONCE = 2**23  # of pre, in all layers of a dense net: 100 MB with post and gradients
STACKED = 2**18  # values of one batch that are looked at together
Row: TypeAlias = Mapping[str, Value]


def most_at_once(layers: Sequence[Observed], batch_size: int, *, alone: bool) -> int:
    """How many examples a probe takes through the net together.

    Args:
        layers: the net's.
        batch_size: of training, whose memory there is in any case.
        alone: no example's activations depend on the others: then a dense net, which has few,
            takes more of them, in the same memory as a small image net.
    """
    if not alone or any(layer.kind != "linear" for layer in layers):
        return batch_size
    return max(batch_size, VALUES_AT_ONCE // sum(layer.units for layer in layers))


@dataclass(frozen=True)
class ProbeSet:
    """The fixed examples of a run's probes.

    Attributes:
        inputs: [n, ...] on the device; or a tuple or mapping of such, as the module takes them.
        targets: [n, ...], alike.
        batch_size: at most so many examples go through the net together.
    """

    inputs: Any
    targets: Any
    batch_size: int

    def __len__(self) -> int:
        return length(self.inputs)

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Nearly equal batches of two and more, so that none is too small for batch statistics."""
        count = min(-(-len(self) // self.batch_size), max(1, len(self) // 2))
        yield from zip(split(self.inputs, count), split(self.targets, count), strict=True)


def length(examples: Any) -> int:
    """How many examples there are in a tensor, or in a tuple or mapping of them."""
    return len(next(tensors_of([examples])))


def split(examples: Any, count: int) -> Iterator[Any]:
    """Nearly equal parts, in order, each of a mapping's kind; what has no examples stays whole.

    A model's output may be a record that can be read by attributes too, and hold more than tensors.
    """
    if isinstance(examples, Tensor) and examples.dim():
        yield from examples.tensor_split(count)
    elif isinstance(examples, Mapping):
        for part in zip(*(split(one, count) for one in examples.values()), strict=True):
            whole: Any = copy.copy(examples)
            for name, one in zip(examples, part, strict=True):
                whole[name] = one
            yield whole
    elif isinstance(examples, list | tuple):
        yield from zip(*(split(one, count) for one in examples), strict=True)
    else:
        yield from [examples] * count


def called(module: nn.Module, inputs: Any) -> Any:
    """The module's output: a tuple is its arguments, a mapping its keyword arguments."""
    if isinstance(inputs, Arguments):
        return module(*inputs.args, **inputs.kwargs)
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


@dataclass
class ProbeRows:
    """Rows for `signal.csv`, `units.csv` and `unit_events.csv`, by column."""

    signal: list[Row] = field(default_factory=list)
    units: list[Row] = field(default_factory=list)
    unit_events: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        module: any module.
        layers: its layers, in forward order.
        loss: of outputs and targets, summed over examples: so the gradient of an example's pre is
            that of its own loss.
        certify: of each layer the units proved inactive, see `Look.certified`.
    """

    module: nn.Module
    layers: list[Observed]
    loss: Callable[[Any, Any], Tensor]
    certify: Callable[[], list[Tensor | None]]


class Prober:
    """Looks at a subject, probe after probe."""

    def __init__(self, subject: Subject, examples: ProbeSet, probes: Sequence[Probe]) -> None:
        self.subject = subject
        self.examples = examples
        self._probes = probes

    def look(self, step: int) -> ProbeRows:
        """Look at the net after `step` updates."""
        subject = self.subject
        look = Look(step, subject.layers, subject.certify())
        for one in self._probes:
            one.begin(look)
        passes = Passes(subject, self._probes)
        with undisturbed(subject.module):
            for inputs, targets in self.examples.batches():
                passes.add(inputs, targets)
        return self._rows(step, passes.touched)

    def _rows(self, step: int, touched: Touched) -> ProbeRows:
        layers = self.subject.layers
        keys: list[dict[str, Value]] = [
            {"step": step, "layer_index": index, "layer": layer.name}
            for index, layer in enumerate(layers, start=1)
        ]
        rows: dict[str, list[dict[str, Value]]] = {
            "signal": [dict(key) for key in keys],
            "units": [
                {**key, "zero_grad_fraction": share}
                for key, share in zip(keys, touched.shares_without(), strict=True)
            ],
        }
        events: list[Row] = []
        for one in self._probes:
            for row, more in zip(rows[one.table], one.rows(), strict=True):
                row.update(more)
            if isinstance(one, Units):
                events += [
                    {**keys[index], "unit": unit, "event": event}
                    for index, happened in sorted(one.events.items())
                    for unit, event in happened
                ]
        return ProbeRows(list(rows["signal"]), list(rows["units"]), events)

    def state(self) -> list[Any]:
        """What the next probe depends on, for a checkpoint."""
        return [one.state() for one in self._probes]

    def load(self, state: list[Any]) -> None:
        """Go on from what `state` returned."""
        for one, before in zip(self._probes, state, strict=True):
            one.load(before)


class Passes:
    """The forward and backward passes of one probe."""

    def __init__(self, subject: Subject, probes: Sequence[Probe]) -> None:
        self._subject, self._probes = subject, probes
        self.touched = Touched(subject.layers)
        self._groups: list[list[int]] | None = None

    def add(self, inputs: Any, targets: Any) -> None:
        """One batch forward and backward, shown to every probe."""
        subject = self._subject
        with torch.enable_grad():
            with captured(subject.layers, inputs) as capture:
                outputs = called(subject.module, inputs)
            loss = subject.loss(outputs, targets)
        gradients = self._gradients(loss, capture)
        with torch.no_grad():
            for stack in self._stacks(capture, gradients, length(inputs)):
                for one in self._probes:
                    one.add(stack)

    def _gradients(self, loss: Tensor, capture: Capture) -> list[Tensor | None]:
        """DLoss/dpre of each layer, [n, units, ...]; None where it is not known."""
        pre = [call.pre for calls in capture.calls for call in calls]
        wanted = [one for one in pre if one.requires_grad]
        weights = self.touched.weights
        found = torch.autograd.grad(loss, [*wanted, *weights], allow_unused=True)
        with torch.no_grad():
            self.touched.add(list(found[len(wanted) :]))
        # What the loss does not depend on has the gradient 0.
        by_tensor = {
            id(one): torch.zeros_like(one) if grad is None else grad
            for one, grad in zip(wanted, found, strict=False)
        }
        of_calls = [[by_tensor.get(id(call.pre)) for call in calls] for calls in capture.calls]
        return [
            in_units(calls, [one for one in grads if one is not None])
            if calls and all(one is not None for one in grads)
            else None
            for calls, grads in zip(capture.calls, of_calls, strict=True)
        ]

    def _stacks(
        self, capture: Capture, gradients: Sequence[Tensor | None], examples: int
    ) -> Iterator[Stack]:
        layers, pre, post = self._subject.layers, capture.pre, capture.post
        if self._groups is None:
            self._groups = groups_of(layers, pre, gradients)
        for group in self._groups:
            missing = [layers[index].name for index in group if pre[index] is None]
            if missing:
                raise RunError(
                    f"{missing[0]} is not called for every batch of the probe examples: a module "
                    "that leaves layers out at random cannot be probed"
                )
            grad = None if gradients[group[0]] is None else _stacked(gradients, group)
            yield Stack(
                group, layers[group[0]], _stacked(pre, group), _stacked(post, group), grad, examples
            )


def _stacked(values: Sequence[Tensor | None], group: Sequence[int]) -> Tensor:
    """The values of some layers, [layers, n, units, ...], in single precision or better."""
    chosen = [one.detach() for index in group if (one := values[index]) is not None]
    stack = chosen[0][None] if len(chosen) == 1 else torch.stack(chosen)
    return stack.float() if stack.dtype in {torch.float16, torch.bfloat16} else stack


def groups_of(
    layers: Sequence[Observed],
    pre: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None],
) -> list[list[int]]:
    """The layers that were called: together those of one shape and activation, not too large."""
    groups: dict[Hashable, list[int]] = {}
    for index, (layer, values, grad) in enumerate(zip(layers, pre, gradients, strict=True)):
        if values is None:
            continue
        stateful = isinstance(layer.function, nn.Module) and bool(layer.function.state_dict())
        alone = index if stateful else None
        key = (values.shape, values.dtype, layer.facts, grad is None, alone)
        groups.setdefault(key, []).append(index)
    parts = []
    for group in groups.values():
        first = pre[group[0]]
        size = max(1, STACKED // first.numel()) if first is not None else 1
        parts += [group[start : start + size] for start in range(0, len(group), size)]
    return parts
