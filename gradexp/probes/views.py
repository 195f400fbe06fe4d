"""What the batches of one probe show of the layers, many of them in one operation."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradexp.nn.network import Layer
from gradexp.probes.numbers import Moments, in_rows, row_norms, wide
from gradexp.probes.units import Activity, counts

SATURATED_BELOW = 0.02
STACK = 2**18  # values of one batch that are looked at together


@dataclass(frozen=True)
class Seen:
    """What a probe has seen of one layer.

    Attributes:
        signal: means and deviations of pre and post, pre_grad_norm, saturated fraction (None for
            a layer that is not hidden).
        dead: inactive on everything, bool [units].
        finite: all of pre was finite, bool [units].
        inactive_fraction: share of all values that were inactive.
    """

    signal: tuple[float | None, ...]
    dead: Tensor
    finite: Tensor
    inactive_fraction: float


class View:
    """Layers of one shape, stacked: [layers, n, units, ...]."""

    def __init__(self, indices: list[int], layer: Layer) -> None:
        self.indices = indices
        self._layer, count, device = layer, len(indices), layer.weight.device
        self._pre, self._post = Moments(count, device), Moments(count, device)
        self._activity = Activity(count, layer)
        self._pre_grad_squares = torch.zeros(count, dtype=wide(device), device=device)
        self._saturated = torch.zeros(count, dtype=torch.int64, device=device)
        self._examples = 0

    def add(
        self, pre: Sequence[Tensor], post: Sequence[Tensor], pre_grad: Sequence[Tensor]
    ) -> None:
        """Take in a batch: of all layers of the net, pre, post and dLoss/dpre [n, units, ...]."""
        mine = self._stacked(pre)
        self._examples += mine.shape[1]
        surely_finite = self._pre.add(in_rows(mine))
        self._post.add(in_rows(self._stacked(post)))
        norms = row_norms(in_rows(self._stacked(pre_grad)))
        self._pre_grad_squares += norms.to(self._pre_grad_squares.dtype).square().sum(1)
        self._activity.add(mine, surely_finite=surely_finite)
        if self._layer.spec.hidden and not self._layer.facts.steep:
            self._saturated += self._count_saturated(mine)

    def _stacked(self, values: Sequence[Tensor]) -> Tensor:
        if len(self.indices) == 1:
            return values[self.indices[0]].detach()[None]
        return torch.stack([values[index].detach() for index in self.indices])

    def _count_saturated(self, pre: Tensor) -> Tensor:
        """How many values of each layer have a small slope, [layers]."""
        with torch.enable_grad():
            # One activation does for all these layers; one with parameters has its layer alone.
            point = (pre[0] if len(pre) == 1 else pre).detach().requires_grad_()
            out = self._layer.activation(point)
            (slope,) = torch.autograd.grad(out, point, torch.ones_like(out))
        return counts(slope.abs_().lt_(SATURATED_BELOW).view(pre.shape))

    def seen(self) -> list[Seen]:
        """What was seen of each layer."""
        moments = (self._pre.mean, self._pre.std, self._post.mean, self._post.std)
        pre_grad_norms = torch.sqrt(self._pre_grad_squares / self._examples)
        activity, facts = self._activity, self._layer.facts
        saturated = activity.inactive if facts.steep else self._saturated
        shares = [
            count.to(pre_grad_norms.dtype) / self._pre.count
            for count in (saturated, activity.inactive)
        ]
        rows = torch.stack((*moments, pre_grad_norms, *shares), 1).tolist()
        return [
            Seen((*figures, fraction if self._layer.spec.hidden else None), dead, finite, inactive)
            for (*figures, fraction, inactive), dead, finite in zip(
                rows, activity.always_inactive.cpu(), activity.finite.cpu(), strict=True
            )
        ]


def views_of(layers: list[Layer], pre: Sequence[Tensor]) -> list[View]:
    """Group the layers: of one shape, with the same stateless activation, not too large."""
    groups: dict[Hashable, list[int]] = {}
    for index, (layer, values) in enumerate(zip(layers, pre, strict=True)):
        alone = index if layer.activation.state_dict() else None
        groups.setdefault((values.shape[1:], layer.facts, alone), []).append(index)
    views = []
    for group in groups.values():
        size = max(1, STACK // pre[group[0]].numel())
        parts = [group[start : start + size] for start in range(0, len(group), size)]
        views += [View(part, layers[part[0]]) for part in parts]
    return views


class Touched:
    """Which weights have had a gradient other than 0.

    Attributes:
        open: the layers (from 0) of which some weight had none yet; the others need no asking.
    """

    def __init__(self, layers: list[Layer]) -> None:
        self._sums = [torch.zeros_like(layer.weight) for layer in layers]  # of magnitudes
        self.open = list(range(len(layers)))

    def add(self, gradients: list[Tensor]) -> None:
        """Take in a batch: the weight gradients of the open layers, which are overwritten."""
        if not self.open:
            return
        sums = [self._sums[index] for index in self.open]
        torch._foreach_abs_(gradients)
        torch._foreach_add_(sums, gradients)
        least = torch.stack([one.amin() for one in sums]).tolist()
        self.open = [index for index, low in zip(self.open, least, strict=True) if low == 0]

    def shares_without(self) -> list[float]:
        """Of each layer, the share of weights that had none."""
        touched = torch.stack([sums.count_nonzero() for sums in self._sums]).tolist()
        return [
            (sums.numel() - count) / sums.numel()
            for sums, count in zip(self._sums, touched, strict=True)
        ]
