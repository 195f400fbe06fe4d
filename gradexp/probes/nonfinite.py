"""Where non-finite values begin: the first step, the first layer, and which tensor."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradexp.errors import RunError
from gradexp.nn.observed import Observed
from gradexp.probes.capture import captured, undisturbed
from gradexp.probes.following import tensors_of
from gradexp.probes.looking import Row, called
from gradexp.probes.steps import PER_LAYER, SCALARS, StepValues

TensorKind = Literal["weight", "activation", "loss", "gradient"]
TOTAL = SCALARS.index("grad_norm")
GRAD, WEIGHT = PER_LAYER.index("grad_norm"), PER_LAYER.index("weight_norm")
ACTIVATION = ("pre_mean", "pre_std", "post_mean", "post_std")  # columns of `signal.csv`


@dataclass(frozen=True)
class NonFinite:
    """The first value that was not finite: within a step weights come first, gradients last.

    `operation`: what made it, if the step was replayed to find that out.
    """

    step: int
    tensor: TensorKind
    layer: str | None
    layer_index: int | None
    operation: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `summary.json`."""
        return {key: one for key, one in asdict(self).items() if key != "operation" or one}

    def sentence(self) -> str:
        """In plain words."""
        where = f" of {self.layer}" if self.layer else ""
        maker = f", made by {self.operation}" if self.operation else ""
        return (
            f"the {self.tensor}{where} is the first that is not finite, at step {self.step}{maker}"
        )


class NonFiniteError(RunError):
    """A watched step was stopped, since a value in it is not finite.

    Attributes:
        found: where it begins: step, layer and tensor.
    """

    def __init__(self, found: NonFinite) -> None:
        super().__init__(f"{found.sentence()}; the update was not made")
        self.found = found


def first_bad_step(values: StepValues) -> int | None:
    """The first position at which loss, a gradient norm or a weight norm is not finite."""
    finite = ~values.bad_loss & np.isfinite(values.scalars[:, TOTAL])
    finite &= np.isfinite(values.layers[:, [GRAD, WEIGHT]]).all((1, 2))
    return None if finite.all() else int(np.argmin(finite))


def locate_by_norms(values: StepValues, position: int, step: int, names: list[str]) -> NonFinite:
    """Name the culprit from recorded norms, when the loss of that step is finite.

    Weights in forward order, gradients in backward order: that is where each begins to spread.
    """
    weights = ~np.isfinite(values.layers[position, WEIGHT])
    if weights.any():
        return _found(step, "weight", int(np.argmax(weights)), names)
    gradients = ~np.isfinite(values.layers[position, GRAD])
    if gradients.any():
        return _found(step, "gradient", int(np.flatnonzero(gradients)[-1]), names)
    return NonFinite(step, "gradient", None, None)


def locate_by_forward(
    module: nn.Module, layers: list[Observed], inputs: Any, step: int
) -> NonFinite:
    """Name the culprit by repeating the forward pass of a step whose loss is not finite.

    The random state must be what it was before that step, so that dropout is the same.
    """
    with undisturbed(module, seed=None), torch.no_grad(), captured(layers, inputs) as seen:
        called(module, inputs)
    activations = [
        all(_finite(one) for call in calls for one in (call.pre, call.post)) for calls in seen.calls
    ]
    return _by_layers(layers, activations, step) or NonFinite(step, "loss", None, None)


class FirstBad(TorchFunctionMode):
    """Notes the first torch function that makes a value that is not finite of finite ones.

    Attributes:
        operation: its name; None while there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operation: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.operation is not None:
            return func(*args, **kwargs)
        # Before the call: it may work in place.
        sound = all(_finite(one) for one in tensors_of([*args, *kwargs.values()]))
        made = func(*args, **kwargs)
        if sound and not all(_finite(one) for one in tensors_of([made])):
            self.operation = torch.overrides.resolve_name(func) or str(func)
        return made


def operation_of_forward(module: nn.Module, inputs: Any) -> str | None:
    """Repeat a forward pass operation by operation: which one first made a non-finite value.

    None where all are finite: it began in the loss or on the way back. The random state must be
    what it was, see `locate_by_forward`.
    """
    first = FirstBad()
    with undisturbed(module, seed=None), torch.no_grad(), first:
        called(module, inputs)
    return first.operation


def locate_by_probe(layers: list[Observed], signal: list[Row], step: int) -> NonFinite | None:
    """Name the culprit from a probe's rows, if there is one.

    It sees what the norms of a step do not: an overflow that a flat activation hides.
    """
    activations = [all(_finite_cell(row.get(name)) for name in ACTIVATION) for row in signal]
    gradients = np.array([_finite_cell(row.get("pre_grad_norm")) for row in signal])
    found = _by_layers(layers, activations, step)
    if found is None and not gradients.all():
        names = [layer.name for layer in layers]
        return _found(step, "gradient", int(np.flatnonzero(~gradients)[-1]), names)
    return found


def _finite_cell(value: object) -> bool:
    """An empty cell is not a value that is not finite."""
    return not isinstance(value, float) or math.isfinite(value)


def _by_layers(layers: list[Observed], activations: list[bool], step: int) -> NonFinite | None:
    """The first layer with a parameter, else with an activation, that is not finite."""
    names = [layer.name for layer in layers]
    weights = [all(_finite(one) for one in layer.tensors) for layer in layers]
    checks: list[tuple[TensorKind, list[bool]]] = [("weight", weights), ("activation", activations)]
    for kind, finite in checks:
        if not all(finite):
            return _found(step, kind, finite.index(False), names)
    return None


def _found(step: int, kind: TensorKind, index: int, names: list[str]) -> NonFinite:
    return NonFinite(step, kind, names[index], index + 1)


def _finite(tensor: Tensor) -> bool:
    """Whole numbers always are."""
    return bool(torch.isfinite(tensor).all())
