"""The layers of any module, found by one forward pass."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.errors import RunError
from gradexp.nn.observed import NONE, Observed
from gradexp.probes.capture import captured, undisturbed
from gradexp.probes.following import Call, Made
from gradexp.probes.functions import known
from gradexp.probes.looking import called

PARAMETRIZED = ".parametrizations."
RECURRENT = frozenset(
    name + cell for name in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")
)
POINTS = 256  # at which a module is asked whether it is elementwise


def find_layers(module: nn.Module, inputs: Any) -> list[Observed]:
    """Its layers, in the order in which their weights are first used.

    Args:
        module: any module; it is left as it is.
        inputs: what it is called with: see `gradexp.probes.looking.called`.

    Raises:
        RunError: no parameter of two dimensions is used as a weight.
    """
    weights = weights_of(module)
    own = list(_own_modules(module))
    candidates = [_candidate(name, some, own) for name, some in weights.items()]
    with undisturbed(module), torch.no_grad(), captured(candidates, inputs) as capture:
        called(module, inputs)
    first: dict[int, Call] = {}
    for call in capture.all_calls:
        for layer in call.layers:
            first.setdefault(layer, call)
    if not first:
        raise RunError(
            f"{type(module).__name__}: no weight was used in a forward pass, so there is nothing "
            "to observe"
        )
    named = {id(one): name for name, one in module.named_parameters()}
    return [
        _observed(candidates[at], call, capture.calls[at], named, module)
        for at, call in first.items()
    ]


def weights_of(module: nn.Module) -> dict[str, list[Tensor]]:
    """Parameters of two dimensions and more by the name of their layer.

    `fc.weight` belongs to `fc`, and so do the parts of a weight that is computed from several.
    """
    found: dict[str, list[Tensor]] = {}
    parts = {_layer_name(name) for name, _ in module.named_parameters() if _is_part(name)}
    for name, parameter in module.named_parameters():
        layer = _layer_name(name)
        if parameter.dim() > 1 or (layer in parts and _is_part(name)):
            found.setdefault(layer, []).append(parameter)
    return found


def _is_part(name: str) -> bool:
    """Whether a parameter is one of several that make up a weight."""
    last = name.rpartition(".")[2]
    return f"{PARAMETRIZED}weight." in f".{name}" or last in {"weight_g", "weight_v", "weight_orig"}


def _layer_name(name: str) -> str:
    """`fc.weight` and `fc.parametrizations.weight.original0` are `fc`; `w1` is itself."""
    if f"{PARAMETRIZED}weight." in f".{name}":
        return f".{name}".partition(f"{PARAMETRIZED}weight.")[0].strip(".") or "weight"
    path, _, last = name.rpartition(".")
    if last in {"weight", "weight_g", "weight_v", "weight_orig"}:
        return path or last
    return name.replace("weight_", "").replace("_weight", "")


def _own_modules(module: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """Somebody's own small modules, and whether each is elementwise: perhaps an activation."""
    for part in module.modules():
        if part is module or list(part.children()) or type(part).__module__.startswith("torch.nn"):
            continue
        if all(parameter.dim() < 2 for parameter in part.parameters()):  # noqa: PLR2004
            yield part, _elementwise(part)


def _elementwise(module: nn.Module) -> bool:
    """Whether a copy of the module treats every value alike, and is no straight line."""
    function = copy.deepcopy(module).cpu().float().eval()
    points = torch.linspace(-3, 3, POINTS)[:, None]
    try:
        with torch.no_grad():
            values, alone = function(points.clone()), function(points[::7].clone())
    except Exception:  # noqa: BLE001  whatever it raises: it wants another input
        return False
    if not isinstance(values, Tensor) or values.shape != points.shape:
        return False
    bent = (values[2:] - 2 * values[1:-1] + values[:-2]).abs().max() > 1e-6 * values.abs().max()
    return bool(torch.equal(values[::7], alone)) and bool(bent)


def _candidate(
    name: str, weights: Sequence[Tensor], own: Sequence[tuple[nn.Module, bool]]
) -> Observed:
    """A layer before it is known what it is; every own module is asked of every layer."""
    return Observed(
        name=name,
        kind="",
        fan_in=0,
        fan_out=0,
        units=0,
        weights=tuple(weights),
        passing=tuple(part for part, elementwise in own if not elementwise),
        activations=tuple(part for part, elementwise in own if elementwise),
    )


def _observed(
    candidate: Observed,
    call: Call,
    own_calls: Sequence[Call],
    named: Mapping[int, str],
    module: nn.Module,
) -> Observed:
    """A layer by the call that used its weight first; `own_calls` are those whose values it has."""
    weight = candidate.weights[-1]
    shape = _shape(call.map, weight)
    shown = own_calls[0] if own_calls else None
    biases = tuple(_biases(call, candidate, named, module))
    activation = shown.activation if shown else None
    name, facts = known(activation) if activation else (NONE, None)
    norm = shown.norm if shown else None
    others = [one for made in (norm, activation) if made for one in _parameters(made)]
    taken = {id(one) for one in (*candidate.weights, *biases)}
    return replace(
        candidate,
        **shape,
        units=shown.units if shown else shape["fan_out"],
        biases=biases,
        others=tuple(one for one in others if id(one) not in taken),
        activation=name,
        norm=norm.name.removesuffix("_norm") if norm else NONE,
        facts=facts,
        function=_function(activation) if activation else None,
    )


def _shape(made: Made, weight: Tensor) -> dict[str, Any]:
    """Kind and fans of the map that takes a weight."""
    if made.name.startswith("conv"):
        return _convolution(made, weight)
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    if made.name in RECURRENT:
        return {"kind": "recurrent", "fan_in": columns, "fan_out": rows}
    if made.name == "multi_head_attention_forward":
        return {"kind": "attention", "fan_in": columns, "fan_out": rows}
    if made.name.startswith("embedding"):
        return {"kind": "embedding", "fan_in": 1, "fan_out": columns}
    if made.name == "linear":
        return {"kind": "linear", "fan_in": columns, "fan_out": rows}
    return {"kind": "linear", "fan_in": rows, "fan_out": columns}  # x @ w


def _convolution(made: Made, weight: Tensor) -> dict[str, Any]:
    groups = made.args[6] if len(made.args) > 6 else made.kwargs.get("groups", 1)  # noqa: PLR2004
    positions = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * positions, weight.shape[0] // groups * positions
    if "transpose" in made.name:
        fan_in, fan_out = weight.shape[0] // groups * positions, weight.shape[1] * positions
    if groups > 1 and groups == weight.shape[0]:
        kind = "depthwise"
    else:
        kind = "pointwise" if positions == 1 and groups == 1 else "conv"
    return {"kind": kind, "fan_in": fan_in, "fan_out": fan_out}


def _biases(
    call: Call, layer: Observed, named: Mapping[int, str], module: nn.Module
) -> Iterator[Tensor]:
    """The bias that has the weight's name; else, of a single map, the vector it is called with."""
    name = named[id(layer.weights[-1])]
    path, _, last = name.rpartition(".")
    if PARAMETRIZED in f".{name}":
        path, last = f".{name}".partition(PARAMETRIZED)[0].strip("."), "weight"
    wanted = f"{path}.{last.split('_g')[0].split('_v')[0]}".strip(".").replace("weight", "bias")
    by_name = dict(module.named_parameters())
    if wanted in by_name and wanted != name:  # a weight may have a name of its own, such as `w1`
        yield by_name[wanted]
    elif len(call.layers) == 1:
        yield from (one for one in _parameters(call.map) if one.dim() == 1)


def _parameters(made: Made) -> list[Tensor]:
    """The parameters that a function was called with, or that a module has."""
    if isinstance(made.func, nn.Module):
        return list(made.func.parameters())
    return [one for one in made.tensors() if isinstance(one, nn.Parameter)]


def _function(made: Made) -> Callable[[Tensor], Tensor]:
    """An activation as a function of pre alone."""
    func, after, named = made.func, made.args[1:], made.kwargs
    return func if isinstance(func, nn.Module) else lambda pre: func(pre, *after, **named)
