"""The parameters of a net and their gradients: measured, remembered, changed, cleared.

Two keepers do it. `FlatParameters` lays all of them into one piece of memory, so that one operation
serves all: small nets feel every operation, large ones every pass through memory. It takes nets of
ours whose parameters allow it. `SeparateParameters` leaves everything where it is: it takes any
net, also one that belongs to somebody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from gradexp.optim.rows import HALF, LONGEST_ROW, Rows, norms_of_rows, row_length, row_norms

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
    # In one piece of memory all have one type and one device, each weight lies in it once, and an
    # optimizer that updates all of it would move what is frozen.
    flat = len(fits) == 1 and next(iter(fits))[0] == torch.float32 and tensors[0].requires_grad
    unshared = count == len(weights) and all(one.is_leaf for one in tensors)
    if flat and unshared and next(iter(fits))[3]:
        return FlatParameters(tensors, count)
    return SeparateParameters(tensors, count)


def ordered(weights: Sequence[Tensor], everything: Iterable[Tensor]) -> list[Any]:
    """Weights first, each parameter once; there is nothing to keep of an empty one."""
    unique = {id(one): one for one in (*weights, *everything) if one.numel()}
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
        # `data` keeps the parameter itself: optimizers and modules hold it, and go on with its new
        # memory. Gradients are there from the start, so that autograd adds into this memory.
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


class Pieces:
    """How tensors that lie apart are measured: in a few operations, whatever their number.

    A large tensor is a matrix of rows by itself; small ones of one size are the rows of a matrix.

    Attributes:
        count: of all pieces.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        # Large tensors are rows by themselves without a copy; small ones are stacked by size, for
        # there an operation costs more than the copy.
        alike: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            alike.setdefault((size, index if size > LONGEST_ROW else -1), []).append(index)
        self._groups = [(row_length(size), group) for (size, _), group in alike.items()]
        order = [index for _, group in self._groups for index in group]
        self._rows = [sizes[index] // row_length(sizes[index]) for index in order]
        self._order = order
        self._first = np.cumsum([0, *self._rows[:-1]])
        self._place = np.argsort(order)
        # Which tensors have a gradient hardly ever changes: the positions are found once for each.
        self._known: dict[tuple[bool, ...], Tensor] = {}
        self._device = device
        self.count = sum(self._rows)

    def norms(self, values: Sequence[Tensor | None]) -> Tensor:
        """L2 norms of all pieces; 0 for those of what is None."""
        matrices = list(self._matrices(values))
        if not matrices:
            return torch.zeros(self.count, device=self._device)
        norms = norms_of_rows(matrices)
        if len(norms) == self.count:
            return norms
        found = torch.zeros(self.count, dtype=norms.dtype, device=norms.device)
        found[self._places([one is not None for one in values], norms.device)] = norms
        return found

    def _matrices(self, values: Sequence[Tensor | None]) -> Iterator[Tensor]:
        for length, group in self._groups:
            known = [one for index in group if (one := values[index]) is not None]
            if len(known) == 1:
                yield known[0].reshape(-1, length)
            elif known:
                yield torch.stack([one.reshape(-1) for one in known])

    def _places(self, known: list[bool], device: torch.device) -> Tensor:
        """The positions of the pieces of what is known."""
        key = tuple(known)
        if key not in self._known:
            chosen = np.repeat([known[index] for index in self._order], self._rows)
            self._known[key] = torch.from_numpy(np.flatnonzero(chosen)).to(device)
        return self._known[key]

    def together(self, squares: np.ndarray) -> np.ndarray:
        """Sums over the pieces of each tensor: [steps, pieces] to [steps, tensors]."""
        sums: np.ndarray = np.add.reduceat(squares, self._first, axis=1)[:, self._place]
        return sums


class SeparateParameters:
    """Parameters of any type, frozen or shared ones too, as they lie.

    Attributes:
        tensors: the net's own parameters, each once.
        weights: how many of them, from the first, are weights of layers.
    """

    def __init__(self, tensors: list[nn.Parameter], weights: int) -> None:
        self.tensors, self.weights = tensors, weights
        self._weights = tensors[:weights]
        sizes = [one.numel() for one in tensors]
        device = tensors[0].device
        self._all, self._of_weights = Pieces(sizes, device), Pieces(sizes[:weights], device)
        self._before: list[Tensor] = []

    def gradient_norms(self) -> Tensor:
        """Of moderately long parts of each gradient."""
        return self._all.norms([one.grad for one in self.tensors])

    def weight_norms(self) -> Tensor:
        """Alike."""
        return self._of_weights.norms([one.detach() for one in self._weights])

    def remember(self) -> None:
        """A copy of each."""
        values = [one.detach() for one in self._weights]
        if self._before:
            torch._foreach_copy_(self._before, values)
        else:
            self._before = [one.float() if one.dtype in HALF else one.clone() for one in values]

    def change_norms(self) -> Tensor:
        """Alike, in single precision or better; what was remembered is used up."""
        torch._foreach_sub_(self._before, [one.detach() for one in self._weights])
        return self._of_weights.norms(self._before)

    def by_tensor(self, squares: np.ndarray) -> np.ndarray:
        """Each tensor has so many pieces."""
        pieces = self._all if squares.shape[1] == self._all.count else self._of_weights
        return pieces.together(squares)

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
