"""The parameters of a net and their gradients: measured, remembered, changed, cleared.

Two keepers do it. `FlatParameters` lays all of them into one piece of memory, so that one operation
serves all: small nets feel every operation, large ones every pass through memory. It takes nets of
ours whose parameters allow it. `SeparateParameters` leaves everything where it is: it takes any
net, also one that belongs to somebody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from gradexp.optim.rows import Rows, as_rows, row_norms

Groups: TypeAlias = list[dict[str, Any]]


class Parameters(Protocol):
    """What training and its probes need of all parameters together.

    Norms come in pieces, in one tensor on the device; `by_tensor` puts their squares together on
    the host. Weights are the first `weights` of the tensors.
    """

    tensors: list[nn.Parameter]
    weights: int

    def gradient_norms(self) -> Tensor:
        """L2 norms of the pieces of all gradients; of a tensor without gradient 0."""

    def weight_norms(self) -> Tensor:
        """L2 norms of the pieces of the weights."""

    def remember(self) -> None:
        """Keep the weights as they are before an update."""

    def change_norms(self) -> Tensor:
        """L2 norms of the pieces of what was remembered minus the weights now; once only."""

    def by_tensor(self, squares: np.ndarray) -> np.ndarray:
        """Sums over the pieces of each tensor: [steps, pieces] to [steps, tensors]."""

    def gradients(self) -> list[Tensor]:
        """All gradients, as tensors that may be changed in place."""

    def add_sign(self, amount: float) -> None:
        """Add amount * sign(w) to the gradient of each weight w."""

    def clear(self) -> None:
        """Set all gradients to zero."""

    def groups(self, weight_decay: float, *, elementwise: bool) -> Groups:
        """Parameter groups for an optimizer: weights with decay, all others without.

        Args:
            weight_decay: of the weights.
            elementwise: the optimizer treats every entry alike, whatever tensor it stands in.
        """

    def state(self) -> list[Tensor]:
        """The values, not copied."""

    def load(self, state: Sequence[Tensor]) -> None:
        """Go on from values."""


def keep(weights: Sequence[Tensor], everything: Iterable[Tensor]) -> Parameters:
    """The keeper that a net's parameters allow.

    Args:
        weights: of its layers, in forward order; a shared one may stand several times.
        everything: all parameters of the net.
    """
    tensors = ordered(weights, everything)
    count = len({id(one) for one in weights})
    fits = {(one.dtype, one.device, one.requires_grad, one.is_contiguous()) for one in tensors}
    flat = len(fits) == 1 and next(iter(fits))[0] == torch.float32 and tensors[0].requires_grad
    unshared = count == len(weights) and all(one.is_leaf for one in tensors)
    if flat and unshared and next(iter(fits))[3]:
        return FlatParameters(tensors, count)
    return SeparateParameters(tensors, count)


def ordered(weights: Sequence[Tensor], everything: Iterable[Tensor]) -> list[Any]:
    """Weights first, each parameter once."""
    unique = {id(one): one for one in (*weights, *everything)}
    return list(unique.values())


class FlatParameters:
    """Parameters and gradients as matrices; they stay the memory that the net works with.

    Attributes:
        tensors: the net's own parameters.
        weights: how many of them, from the first, are weights of layers.
    """

    def __init__(self, tensors: list[nn.Parameter], weights: int) -> None:
        self.tensors, self.weights = tensors, weights
        self._rows = Rows([one.numel() for one in tensors])
        count, self._split = int(self._rows.first[-1]), int(self._rows.first[weights])
        self._values = torch.zeros(count, self._rows.length, device=tensors[0].device)
        self._gradients = torch.zeros_like(self._values)
        self._before = torch.zeros_like(self._values[: self._split])
        for index, one in enumerate(tensors):
            place = self._rows.place(self._values, index, one.shape)
            one.data = place.copy_(one.data)
            one.grad = self._rows.place(self._gradients, index, one.shape)

    def gradient_norms(self) -> Tensor:
        """Of rows."""
        return row_norms(self._gradients)

    def weight_norms(self) -> Tensor:
        """Of rows."""
        return row_norms(self._values[: self._split])

    def remember(self) -> None:
        """One copy."""
        self._before.copy_(self._values[: self._split])

    def change_norms(self) -> Tensor:
        """Of rows; what was remembered is used up."""
        return row_norms(self._before.sub_(self._values[: self._split]))

    def by_tensor(self, squares: np.ndarray) -> np.ndarray:
        """Each tensor fills whole rows."""
        first = self._rows.first[:-1]
        sums: np.ndarray = np.add.reduceat(squares, first[first < squares.shape[1]], axis=1)
        return sums

    def gradients(self) -> list[Tensor]:
        """Of each tensor: clipping may treat tensors apart."""
        return [one.grad for one in self.tensors if one.grad is not None]

    def add_sign(self, amount: float) -> None:
        """To all weights at once."""
        self._gradients[: self._split].add_(self._values[: self._split].sign(), alpha=amount)

    def clear(self) -> None:
        """All at once."""
        self._gradients.zero_()

    def groups(self, weight_decay: float, *, elementwise: bool) -> Groups:
        """Where entries are treated alike, all tensors as one, or as two: with decay and without.

        Updating these updates the net's own; no graph knows of them.
        """
        if not elementwise:
            return _groups(self.tensors, self.weights, weight_decay)
        split = self._split if weight_decay > 0 else len(self._values)
        return _some(
            (_parameter(self._values[:split], self._gradients[:split]), weight_decay),
            (_parameter(self._values[split:], self._gradients[split:]), 0.0),
        )

    def state(self) -> list[Tensor]:
        """One matrix."""
        return [self._values]

    def load(self, state: Sequence[Tensor]) -> None:
        """One copy."""
        self._values.copy_(state[0])


def _parameter(values: Tensor, gradients: Tensor) -> list[Tensor]:
    if not len(values):
        return []
    parameter = nn.Parameter(values, requires_grad=False)
    parameter.grad = gradients
    return [parameter]


def _some(*groups: tuple[list[Any], float]) -> Groups:
    """Optimizers refuse groups without parameters."""
    return [{"params": some, "weight_decay": decay} for some, decay in groups if some]


def _groups(tensors: list[nn.Parameter], weights: int, weight_decay: float) -> Groups:
    trainable = [one for one in tensors[:weights] if one.requires_grad]
    others = [one for one in tensors[weights:] if one.requires_grad]
    return _some((trainable, weight_decay), (others, 0.0))


class SeparateParameters:
    """Parameters of any type, frozen or shared ones too, as they lie.

    Attributes:
        tensors: the net's own parameters, each once.
        weights: how many of them, from the first, are weights of layers.
    """

    def __init__(self, tensors: list[nn.Parameter], weights: int) -> None:
        self.tensors, self.weights = tensors, weights
        self._weights = tensors[:weights]
        pieces = [len(as_rows(one.detach())) for one in tensors]
        self._first = np.cumsum([0, *pieces[:-1]])
        self._pieces = pieces
        self._before: list[Tensor] = []

    def gradient_norms(self) -> Tensor:
        """Of moderately long parts of each gradient."""
        return torch.cat(
            [
                _norms(one.grad) if one.grad is not None else torch.zeros(pieces, device=one.device)
                for one, pieces in zip(self.tensors, self._pieces, strict=True)
            ]
        )

    def weight_norms(self) -> Tensor:
        """Alike."""
        return torch.cat([_norms(one.detach()) for one in self._weights])

    def remember(self) -> None:
        """A copy of each."""
        values = [one.detach() for one in self._weights]
        if self._before:
            torch._foreach_copy_(self._before, values)
        else:
            self._before = [one.clone() for one in values]

    def change_norms(self) -> Tensor:
        """Alike; what was remembered is used up."""
        torch._foreach_sub_(self._before, [one.detach() for one in self._weights])
        return torch.cat([_norms(one) for one in self._before])

    def by_tensor(self, squares: np.ndarray) -> np.ndarray:
        """Each tensor has so many pieces."""
        first = self._first[self._first < squares.shape[1]]
        sums: np.ndarray = np.add.reduceat(squares, first, axis=1)
        return sums

    def gradients(self) -> list[Tensor]:
        """Of those that have one."""
        return [one.grad for one in self.tensors if one.grad is not None]

    def add_sign(self, amount: float) -> None:
        """To each weight that is trained."""
        for one in self._weights:
            if one.grad is not None:
                one.grad.add_(one.detach().sign(), alpha=amount)

    def clear(self) -> None:
        """What has no gradient has none afterwards."""
        if found := self.gradients():
            torch._foreach_zero_(found)

    def groups(self, weight_decay: float, *, elementwise: bool) -> Groups:  # noqa: ARG002  a protocol's
        """The trainable ones as they are."""
        return _groups(self.tensors, self.weights, weight_decay)

    def state(self) -> list[Tensor]:
        """One tensor each."""
        return [one.detach() for one in self.tensors]

    def load(self, state: Sequence[Tensor]) -> None:
        """A copy of each."""
        for one, before in zip(self.tensors, state, strict=True):
            one.detach().copy_(before)


def _norms(tensor: Tensor) -> Tensor:
    return row_norms(as_rows(tensor))
