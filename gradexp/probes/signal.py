"""What a layer passes on, over the probe examples: `signal.csv`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gradexp.nn.observed import Observed
from gradexp.probes.activity import counts
from gradexp.probes.numbers import Moments, in_rows, row_norms, wide
from gradexp.probes.registry import PROBES, Look, Probe, Stack
from gradexp.records.tables import SIGNAL, Value

SATURATED_BELOW = 0.02
COLUMNS = ("pre_mean", "pre_std", "post_mean", "post_std", "pre_grad_norm", "saturated_fraction")


@PROBES.register("signal")
def signal() -> Probe:
    """Mean and deviation of pre and post, per-example gradient, saturated share."""
    return Signal()


class Signal(Probe):
    """One series a group of layers, so that all of them are reduced in one operation."""

    table = "signal"
    columns = tuple(SIGNAL.column(name) for name in COLUMNS)

    def begin(self, look: Look) -> None:
        """Forget the last probe."""
        self._count = len(look.layers)
        self._series: dict[tuple[int, ...], Series] = {}

    def add(self, stack: Stack) -> None:
        """Take in a batch."""
        key = tuple(stack.indices)
        if key not in self._series:
            self._series[key] = Series(len(key), stack.pre.device)
        self._series[key].add(stack)

    def rows(self) -> list[Mapping[str, Value]]:
        """Of each layer all columns; nothing of a layer that was not called."""
        found: list[Mapping[str, Value]] = [{} for _ in range(self._count)]
        for indices, series in self._series.items():
            for index, figures in zip(indices, series.figures(), strict=True):
                found[index] = dict(zip(COLUMNS, figures, strict=True))
        return found


class Series:
    """What the batches showed of layers of one shape."""

    def __init__(self, layers: int, device: torch.device) -> None:
        self._pre, self._post = Moments(layers, device), Moments(layers, device)
        self._pre_grad_squares = torch.zeros(layers, dtype=wide(device), device=device)
        self._pre_grad_known = True
        self._saturated = torch.zeros(layers, dtype=torch.int64, device=device)
        self._examples = 0

    def add(self, stack: Stack) -> None:
        """Take in a batch."""
        self._layer = stack.layer
        self._examples += stack.examples
        self._pre.add(in_rows(stack.pre))
        self._post.add(in_rows(stack.post))
        if stack.pre_grad is None:
            self._pre_grad_known = False
        else:
            norms = row_norms(in_rows(stack.pre_grad))
            self._pre_grad_squares += norms.to(self._pre_grad_squares.dtype).square().sum(1)
        facts = stack.layer.facts
        if facts and facts.steep:
            self._saturated += counts(stack.inactive)
        elif stack.layer.function:
            self._saturated += count_saturated(stack.pre, stack.layer.function)

    def figures(self) -> list[tuple[float | None, ...]]:
        """Of each layer its figures, in the order of `COLUMNS`."""
        moments = (self._pre.mean, self._pre.std, self._post.mean, self._post.std)
        pre_grad_norms = torch.sqrt(self._pre_grad_squares / self._examples)
        share = self._saturated.to(pre_grad_norms.dtype) / self._pre.count
        rows = torch.stack((*moments, pre_grad_norms, share), 1).tolist()
        known, judged = self._pre_grad_known, has_slope(self._layer)
        return [
            (*figures, grad if known else None, fraction if judged else None)
            for *figures, grad, fraction in rows
        ]


def has_slope(layer: Observed) -> bool:
    """Whether the slope of its activation can be asked for."""
    return layer.facts is not None and (layer.facts.steep or layer.function is not None)


def count_saturated(pre: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """How many values of each layer have a small slope, [layers]."""
    with torch.enable_grad():
        # One activation does for all these layers; one with parameters has its layer alone.
        point = (pre[0] if len(pre) == 1 else pre).detach().requires_grad_()
        out = function(point)
        (slope,) = torch.autograd.grad(out, point, torch.ones_like(out))
    return counts(slope.abs_().lt_(SATURATED_BELOW).view(pre.shape))
