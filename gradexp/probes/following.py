"""Following every layer along the data, from the call that takes its weight to its activation.

Every call of a torch function is seen, so it does not matter whether an activation is a module, a
function or a method, in place or not, used once or many times; nor whether a weight is a parameter
or computed from some (weight norm, a mask).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradexp.probes.recurrent import RECURRENT, with_states_of_output

Function: TypeAlias = Callable[..., Any]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MAPS = _names(
    """
    linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d addmm
    baddbmm matmul rmatmul mm bmm einsum tensordot embedding embedding_bag lstm gru rnn_tanh
    rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell multi_head_attention_forward
    """
)
NORMS = _names(
    """
    batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm
    """
)
ACTIVATIONS = _names(
    """
    relu relu6 hardtanh leaky_relu prelu rrelu elu selu celu gelu silu mish softplus softsign
    sigmoid log_sigmoid tanh hardsigmoid hardswish hardshrink softshrink tanhshrink threshold clamp
    clamp_min clip erf
    """
)
# The same values, perhaps some of them dropped, in another type.
SAME = _names(
    """
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout clone contiguous to
    type float half bfloat16 double
    """
)
# Still the layer's values: in another place or shape, on another scale, with others added.
CHANGED = _names(
    """
    view view_as reshape reshape_as flatten unflatten permute transpose movedim swapaxes swapdims t
    squeeze unsqueeze expand expand_as add radd iadd sub rsub isub mul rmul imul div truediv
    itruediv pad roll flip max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d lp_pool2d interpolate
    """
)
PRODUCTS = _names("mul rmul multiply")
IN_PLACE_OPERATORS = frozenset(["__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__"])


@dataclass(frozen=True)
class Arguments:
    """What a module was called with, of both kinds."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A function or a module, and what it was called with."""

    name: str
    func: Function
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """All tensors it was called with."""
        return [*tensors_of(self.args), *tensors_of(self.kwargs.values())]


@dataclass(eq=False)
class Call:
    """One call of a layer's map, and what followed.

    Attributes:
        layers: positions of the layers in the list, from 0: of several weights in one call (a
            recurrent layer's) the last one's values are seen.
        map: what took the weight.
        axis: where units lie in pre and post: 1 or -1.
        units: how many there are.
        pre: what its activation was given; without one, what came out of map and norm.
        post: what its activation returned.
        norm: the norm on the way, where there was one.
        activation: the activation; None where none was met.
        alone: nothing that came from the inputs went into it (an embedding of positions): it has no
            examples, so pre has no gradient per example and is shown cut off from the graph.
    """

    layers: Sequence[int]
    map: Made
    axis: int
    units: int
    pre: Tensor
    post: Tensor
    norm: Made | None = None
    activation: Made | None = None
    alone: bool = False

    def __post_init__(self) -> None:
        self.show(self.pre, self.post)

    def show(self, pre: Tensor, post: Tensor) -> None:
        """From now on these are its values."""
        self.pre, self.post = (pre.detach().clone() if self.alone else pre), post


@dataclass(frozen=True)
class Trail:
    """Where a tensor comes from.

    Attributes:
        tensor: itself: kept, so that no other gets its id.
        depth: maps on the longest way from the input to it.
        call: the call whose activation is still to come; None where none is.
        direct: nothing but norms and dropout has come since the map.
    """

    tensor: Tensor
    depth: int = 0
    call: Call | None = None
    direct: bool = False


class Follower(TorchFunctionMode):
    """While active, notes the calls of each layer.

    It is told the parameters of each layer's weight, and what the forward pass is given.

    Attributes:
        calls: of each layer, in the order in which they were made.
        all_calls: of all layers, alike.
    """

    def __init__(self, weights: Sequence[Sequence[Tensor]], inputs: Any) -> None:
        super().__init__()
        self.calls: list[list[Call]] = [[] for _ in weights]
        self.all_calls: list[Call] = []
        # By identity: equal tensors are not the same one, and comparing them would compare values.
        self._layer_of = {id(one): index for index, some in enumerate(weights) for one in some}
        self._made_of_weights: list[Tensor] = []  # kept, so that no other tensor gets their ids
        self._trails = {id(one): Trail(one) for one in tensors_of([inputs])}
        self._shown: dict[int, list[Call]] = {}

    def __torch_function__(
        self,
        func: Function,
        _types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """One call of a torch function: carried out, and noted where it concerns a layer."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute, such as a shape
            return func(*args, **kwargs)
        made = Made(name.strip("_"), func, args, kwargs)
        # A call in place ends the life of a value that is or may become pre: it is told apart
        # before it is carried out, for afterwards that value is gone.
        first = next(tensors_of(args), None)
        if id(first) in self._trails and _in_place(made):
            return self._call_in_place(made)
        return self._call(made)

    def _call(self, made: Made) -> Any:
        tensors = made.tensors()
        trails = [trail for one in tensors if (trail := self._trails.get(id(one)))]
        layers = [self._layer_of[id(one)] for one in tensors if id(one) in self._layer_of]
        result = made.func(*made.args, **made.kwargs)
        if not trails and not layers:
            return result
        if layers and made.name in MAPS and not self._only_parameters(tensors):
            return self._map(made, list(dict.fromkeys(layers)), trails, result)
        if not trails:
            self._remember_weight(layers[-1], result)
            return result
        # Where layers meet (a sum, a product) the values of one of them go on; its activation is
        # still to come, while the other's turn out to have none.
        depth = max(trail.depth for trail in trails)
        at = max(trails, key=_rank)
        self._follow(made, at, depth, result)
        return result

    def _only_parameters(self, tensors: Iterable[Tensor]) -> bool:
        """Nothing but weights, what was made of them, and other parameters: no data."""
        return all(isinstance(one, nn.Parameter) or id(one) in self._layer_of for one in tensors)

    def _remember_weight(self, layer: int, result: Any) -> None:
        """What is computed from a weight alone is that weight."""
        for one in tensors_of([result]):
            self._layer_of.setdefault(id(one), layer)
            self._made_of_weights.append(one)

    def _map(self, made: Made, layers: list[int], trails: list[Trail], result: Any) -> Any:
        """A layer begins: of several weights in one call, the last is nearest the output."""
        depth = 1 + max((trail.depth for trail in trails), default=0)
        first, *rest = tensors_of([result])
        if torch.is_grad_enabled() and not first.requires_grad and first.is_floating_point():
            anchor = first.detach().requires_grad_().clone()  # nothing before it can be trained
            result, first = _replaced(result, first, anchor), anchor
        # Convolutions put units behind the examples, every other map puts them last.
        axis = 1 if made.name.startswith("conv") else -1
        if made.name in RECURRENT:
            result = with_states_of_output(made.args, result)
            rest = list(tensors_of(result))[1:]
        call = Call(layers, made, axis, first.shape[axis], first, first, alone=not trails)
        self.all_calls.append(call)
        # A weight that is shared by maps of two kinds is seen at the first of them.
        if all(_alike(call, other) for other in self.calls[layers[-1]][:1]):
            self.calls[layers[-1]].append(call)
        self._show(call)
        self._put(Trail(first, depth, call, direct=True))
        for one in rest:
            self._put(Trail(one, depth))
        return result

    def _follow(self, made: Made, at: Trail, depth: int, result: Any) -> None:
        """What became of a layer's values, where the call is open that they come from.

        A function that none of the lists knows closes the call: what comes out is no longer known
        to be the layer's values, and a later activation is not its own.
        """
        outputs = [one for one in tensors_of([result]) if one is not at.tensor]
        if not outputs:
            return
        call, first = at.call, outputs[0]
        trail = Trail(first, depth)
        if gated := self._gated_call(made):
            gated.show(gated.pre, first)
            gated.activation = _self_gated(gated.activation)
            self._show(gated)
        elif call and made.name in NORMS:
            # After a sum or a reshape a norm is that of the sum (pre-norm blocks), not the layer's.
            if at.direct and _fits(call, first):
                self._normalized(call, first, made)
            trail = replace(trail, call=call, direct=at.direct)
        elif call and made.name in SAME:
            trail = replace(trail, call=call, direct=at.direct)
        elif call and made.name in CHANGED:
            trail = replace(trail, call=call)
        elif call and made.name in ACTIVATIONS and _fits(call, at.tensor):
            call.show(at.tensor, first)
            call.activation = made
            self._show(call)
        self._put(trail)
        for one in outputs[1:]:
            self._put(Trail(one, depth))

    def _gated_call(self, made: Made) -> Call | None:
        """The call whose pre is multiplied by its own activation, as in x * sigmoid(x)."""
        ids = {id(one) for one in made.tensors()}
        if made.name not in PRODUCTS or len(ids) < 2:  # noqa: PLR2004  two factors
            return None
        shown = (call for one in ids for call in self._shown.get(one, []) if call.activation)
        return next((call for call in shown if ids == {id(call.pre), id(call.post)}), None)

    def _normalized(self, call: Call, values: Tensor, made: Made) -> None:
        call.show(values, values)
        call.norm = made
        self._show(call)

    def _call_in_place(self, made: Made) -> Any:
        """Done on a copy and written back: what was there before is pre, and keeps its gradient."""
        changed = next(tensors_of(made.args))
        kept = changed.clone()
        # The copy is in the graph where the original stood, so a gradient of pre can be asked for;
        # who still holds the original sees it change, as in a forward pass that nobody watches.
        for call in self._shown.get(id(changed), []):
            call.pre = kept if call.pre is changed else call.pre
            call.post = kept if call.post is changed else call.post
        twin = _out_of_place(made)
        if twin is None:  # the layer's values before it are known, but not their gradient
            result = made.func(*made.args, **made.kwargs)
            self._put(Trail(changed, self._trails[id(changed)].depth))
            return result
        self._put(replace(self._trails[id(changed)], tensor=kept))
        result = self._call(replace(twin, args=(kept, *twin.args[1:])))
        changed.copy_(result)
        self._put(replace(self._trails[id(result)], tensor=changed))
        return changed

    def _show(self, call: Call) -> None:
        """Remember which tensors are shown, so that none of them is changed unnoticed."""
        for one in (call.pre, call.post):
            self._shown.setdefault(id(one), []).append(call)

    def _put(self, trail: Trail) -> None:
        self._trails[id(trail.tensor)] = trail

    def passed(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Hook of a module whose output is pre, whatever it did."""
        trail = self._trails.get(id(inputs[0])) if inputs else None
        if not (trail and trail.call and isinstance(output, Tensor)) or output is inputs[0]:
            return
        trail.call.activation = None
        if trail.direct and output.shape == inputs[0].shape:
            self._normalized(trail.call, output, Made(_name_of(module), module))
        self._put(replace(trail, tensor=output))

    def activated(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Hook of a module that is an activation as a whole."""
        trail = self._trails.get(id(inputs[0])) if inputs else None
        if not (trail and trail.call):
            return
        # A module that works in place returns its input, which by now holds the outcome; the
        # function it called was seen and has kept what was there before.
        pre = trail.call.pre if output is inputs[0] else inputs[0]
        trail.call.show(pre, output)
        trail.call.activation = Made(_name_of(module), module)
        self._show(trail.call)
        self._put(Trail(output, trail.depth))


def tensors_of(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, those in lists, tuples, mappings and records too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_of(value)
        elif isinstance(value, Mapping):
            yield from tensors_of(value.values())
        elif is_dataclass(value) and not isinstance(value, type):
            yield from tensors_of(vars(value).values())


def _rank(trail: Trail) -> tuple[bool, bool, int]:
    """Which of several layers' values go on: those of the inputs, that have come furthest."""
    return trail.call is not None, not (trail.call and trail.call.alone), trail.depth


def _self_gated(gate: Made | None) -> Made:
    """An activation that is x times another of x."""
    assert gate  # noqa: S101  asked where there is one
    func = gate.func

    def product(pre: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        value: Tensor = pre * func(pre, *args, **kwargs)
        return value

    name = "silu" if gate.name == "sigmoid" else f"x*{gate.name}"
    return replace(gate, name=name, func=product)


def _alike(call: Call, other: Call) -> bool:
    return call.map.name == other.map.name and call.units == other.units


def _fits(call: Call, tensor: Tensor) -> bool:
    """Whether units lie where they did when the map returned them."""
    return tensor.dim() > 1 and tensor.shape[call.axis] == call.units


def _replaced(result: Any, old: Tensor, new: Tensor) -> Any:
    if result is old:
        return new
    return tuple(new if one is old else one for one in result)


def _name_of(module: nn.Module) -> str:
    return type(module).__name__.lower()


def _in_place(made: Made) -> bool:
    """Whether a call changes its first argument."""
    name: str = made.func.__name__
    if name in IN_PLACE_OPERATORS or made.kwargs.get("inplace"):
        return True
    # Torch's methods in place end in one underscore; that one sets a flag and changes no value.
    if name.endswith("_") and not name.startswith("_"):
        return name != "requires_grad_"
    at = _inplace_position(made.func)
    return at is not None and len(made.args) > at and bool(made.args[at])


@cache
def _inplace_position(func: Function) -> int | None:
    """Which positional argument of a function is `inplace`."""
    if not inspect.isfunction(func):
        return None
    try:
        names = list(inspect.signature(func).parameters)
    except ValueError:  # what stands behind an operator such as ** has no signature
        return None
    return names.index("inplace") if "inplace" in names else None


def _out_of_place(made: Made) -> Made | None:
    """The same call out of place; None where torch has none."""
    at = _inplace_position(made.func)
    if at is not None:
        args = tuple(False if index == at else one for index, one in enumerate(made.args))
        named = {key: one for key, one in made.kwargs.items() if key != "inplace"}
        return replace(made, args=args, kwargs=named)
    name: str = made.func.__name__
    wanted = f"__{made.name[1:]}__" if name.startswith("__i") else name.rstrip("_")
    for home in (Tensor, torch, nn.functional):
        if callable(found := getattr(home, wanted, None)):
            return replace(made, func=found)
    return None
