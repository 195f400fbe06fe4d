"""Nets that know nothing of this project, and a slow float64 look at each of them.

Every net has a function that computes it a second time, from the parts of a float64 copy, one after
the other, and tells what each layer's activation was given. Where no norm mixes examples, one of
them is seen at a time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradexp.nn.observed import Observed
from gradexp.probes import PROBES, Prober, ProbeRows, ProbeSet, Subject
from gradexp.probes.finding import find_layers


def look(net: nn.Module, inputs: Any, targets: Tensor, batch_size: int = 64) -> ProbeRows:
    """What probes see of a net that is somebody else's."""
    return prober(net, inputs, targets, batch_size).look(0)


def prober(net: nn.Module, inputs: Any, targets: Tensor, batch_size: int = 64) -> Prober:
    """Looks at a net that is somebody else's, of which nothing is certified."""
    layers = find_layers(net, inputs)
    none: list[Tensor | None] = [None] * len(layers)
    loss = partial(F.cross_entropy, reduction="sum")
    subject = Subject(net, layers, loss, lambda: none)
    examples = ProbeSet(inputs, targets, batch_size)
    return Prober(subject, examples, [entry.make() for entry in PROBES])


def described(layer: Observed) -> str:
    """A layer in one line: name, kind, fans, units, activation, norm."""
    row = layer.row(1)
    keys = ("layer", "kind", "fan_in", "fan_out", "units", "activation", "norm")
    return " ".join(str(row[key]) for key in keys)


# --- activations, in closed form ---------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """An activation and its derivative; whether that is exactly 0 somewhere by construction."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    flat: bool = False


def _normal(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _density(x: Tensor) -> Tensor:
    return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _logistic(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def limited(low: float, high: float) -> Shape:
    """The identity between two limits."""
    return Shape(
        lambda x: torch.where(x <= low, low, torch.where(x >= high, high, x)),
        lambda x: ((x > low) & (x < high)).double(),
        flat=True,
    )


RELU, RELU6 = limited(0, math.inf), limited(0, 6)
LINE = Shape(lambda x: x, torch.ones_like)
GELU = Shape(lambda x: x * _normal(x), lambda x: _normal(x) + x * _density(x))
SILU = Shape(lambda x: x * _logistic(x), lambda x: _logistic(x) * (1 + x * (1 - _logistic(x))))
TANH = Shape(torch.tanh, lambda x: 1 / torch.cosh(x) ** 2)
SIGMOID = Shape(_logistic, lambda x: _logistic(x) * (1 - _logistic(x)))
SOFTPLUS = Shape(lambda x: torch.log1p(torch.exp(x)), _logistic)
SOFTSIGN = Shape(lambda x: x / (1 + x.abs()), lambda x: 1 / (1 + x.abs()) ** 2)
LOGSIGMOID = Shape(lambda x: -torch.log1p(torch.exp(-x)), lambda x: _logistic(-x))
TANHSHRINK = Shape(lambda x: x - torch.tanh(x), lambda x: torch.tanh(x) ** 2)


def leaky(slope: float) -> Shape:
    """A leaky ReLU."""
    return Shape(
        lambda x: torch.where(x > 0, x, slope * x),
        lambda x: torch.where(x > 0, 1.0, slope).double(),
        flat=slope == 0,
    )


def elu(alpha: float) -> Shape:
    """An exponential linear unit."""
    return Shape(
        lambda x: torch.where(x > 0, x, alpha * (torch.exp(x) - 1)),
        lambda x: torch.where(x > 0, 1.0, alpha * torch.exp(x)),
    )


# --- the slow look -----------------------------------------------------------------------------


@dataclass
class Layer:
    """Everything seen of a layer, group of examples after group: [n, units, ...] each."""

    shape: Shape | None
    alone: bool
    pres: list[Tensor] = field(default_factory=list)
    posts: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)

    @property
    def pre(self) -> Tensor:
        """Pre of all examples."""
        return torch.cat(self.pres)

    @property
    def post(self) -> Tensor:
        """Post of all examples."""
        return torch.cat(self.posts)

    @property
    def grad(self) -> Tensor:
        """The gradient of each example's loss at its pre."""
        return torch.cat(self.grads)

    def pre_grad_norm(self, examples: int) -> float:
        """Root mean square over examples."""
        return math.sqrt(float((self.grad**2).sum()) / examples)

    def no_grad_units(self) -> int:
        """Units whose gradient is 0 for every example, at every position."""
        return int((per_unit(self.grad).abs().amax(1) == 0).sum())

    def dead(self) -> int:
        """Units whose slope is 0 for every example, at every position."""
        assert self.shape
        return int((per_unit(self.shape.slope(self.pre)) == 0).all(1).sum())

    def saturated_between(self, margin: float) -> tuple[float, float]:
        """The share of slopes below 0.02, were the limit moved by so much."""
        assert self.shape
        slope = self.shape.slope(self.pre).abs()
        low, high = ((slope < 0.02 + move).double().mean() for move in (-margin, margin))
        return float(low), float(high)


def per_unit(values: Tensor) -> Tensor:
    """[n, units, ...] as [units, all others]."""
    return values.transpose(0, 1).flatten(1)


class Trace:
    """What one pass of the slow net lets through."""

    def __init__(self) -> None:
        self.pres: dict[str, Tensor] = {}
        self.layers: dict[str, Layer] = {}

    def __call__(
        self, name: str, pre: Tensor, shape: Shape | None = None, *, alone: bool = False
    ) -> Tensor:
        """Tell of a layer's pre; returns its post."""
        post = shape.value(pre) if shape else pre
        layer = Layer(shape, alone)
        layer.pres.append(_units_second(pre.detach()))
        layer.posts.append(_units_second(post.detach()))
        self.pres[name], self.layers[name] = pre, layer
        return post


def _units_second(values: Tensor) -> Tensor:
    """Of [n, positions, units]; images have their channels there already."""
    return values.transpose(1, 2) if values.dim() == 3 else values


Follow = Callable[[Any, Tensor, Trace], Tensor]
"""Computes a net from the parts of a float64 copy and tells of every layer."""


def slow_look(
    net: nn.Module, follow: Follow, inputs: Tensor, targets: Tensor, *, together: bool
) -> dict[str, Layer]:
    """What probes must see, by the names of layers; `together` where norms mix examples."""
    wide = copy.deepcopy(net).double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    found: dict[str, Layer] = {}
    size = len(targets) if together else 1
    for chunk, labels in zip(inputs.split(size), targets.split(size), strict=True):
        trace = Trace()
        logits = follow(wide, chunk, trace)
        chosen = logits[torch.arange(len(labels)), labels]
        loss = (torch.logsumexp(logits, 1) - chosen).sum()
        grads = torch.autograd.grad(loss, list(trace.pres.values()))
        for (name, layer), grad in zip(trace.layers.items(), grads, strict=True):
            layer.grads.append(_units_second(grad))
            _join(found, name, layer)
    return found


def _join(found: dict[str, Layer], name: str, layer: Layer) -> None:
    """What has no examples is the same each time."""
    known = found.setdefault(name, layer)
    if known is not layer and not layer.alone:
        for mine, more in (("pres", layer.pres), ("posts", layer.posts), ("grads", layer.grads)):
            getattr(known, mine).extend(more)


# --- nets --------------------------------------------------------------------------------------


def resnet18(net: Any, x: Tensor, see: Trace) -> Tensor:
    """torchvision's: the last activation of a block comes after the sum."""
    x = see("conv1", net.bn1(net.conv1(x)), RELU)
    x = net.maxpool(x)
    for stage in range(1, 5):
        for place in range(2):
            name, block = f"layer{stage}.{place}", getattr(net, f"layer{stage}")[place]
            out = see(f"{name}.conv1", block.bn1(block.conv1(x)), RELU)
            out = block.bn2(block.conv2(out))
            if stage > 1 and place == 0:
                x = see(f"{name}.downsample.0", block.downsample[1](block.downsample[0](x)))
            x = see(f"{name}.conv2", out + x, RELU)
    return see("fc", net.fc(x.mean((2, 3))))


def mobilenet_v2(net: Any, x: Tensor, see: Trace) -> Tensor:
    """torchvision's: the last layer of a block has no activation."""
    first, last = net.features[0], net.features[18]
    x = see("features.0.0", first[1](first[0](x)), RELU6)
    for index in range(1, 18):
        *heads, tail, norm = net.features[index].conv
        out = x
        for place, head in enumerate(heads):
            out = see(f"features.{index}.conv.{place}.0", head[1](head[0](out)), RELU6)
        out = see(f"features.{index}.conv.{len(heads)}", norm(tail(out)))
        x = x + out if x.shape == out.shape else out
    x = see("features.18.0", last[1](last[0](x)), RELU6)
    return see("classifier.1", net.classifier[1](x.mean((2, 3))))


class Recurrent(nn.Module):
    """Reads a sequence; classified by its last output, or by the last state."""

    def __init__(self, *, by_state: bool) -> None:
        super().__init__()
        self.by_state = by_state
        self.lstm = nn.LSTM(5, 6, num_layers=2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[n, steps, 5] to logits."""
        outputs, (states, _) = self.lstm(x)
        logits: Tensor = self.head(states[-1] if self.by_state else outputs[:, -1])
        return logits


def recurrent(net: Any, x: Tensor, see: Trace) -> Tensor:
    """The equations of an LSTM, step by step."""
    lstm = net.lstm
    for level in range(2):
        into, within, *biases = (
            getattr(lstm, f"{name}_l{level}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = c = x.new_zeros(len(x), 6)
        outputs = []
        for step in range(x.shape[1]):
            gates = x[:, step] @ into.T + h @ within.T + sum(biases)
            entry, forget, new, exit_ = gates.split(6, dim=1)
            c = _logistic(forget) * c + _logistic(entry) * torch.tanh(new)
            h = _logistic(exit_) * torch.tanh(c)
            outputs.append(h)
        x = torch.stack(outputs, 1)
    x = see("lstm.hh_l1", x)
    return see("head", net.head(x[:, -1]))


class TransformerBlock(nn.Module):
    """Attention to what came before, then two maps with a function between them."""

    def __init__(self, width: int, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """[n, tokens, width] to the same."""
        h = self.norm1(x)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        x = x + self.attention(h, h, h, attn_mask=later, need_weights=False)[0]
        out: Tensor = x + self.down(self.function(self.up(self.norm2(x))))
        return out


class SmallGPT(nn.Module):
    """Three blocks whose activations are functions: out of place, in place, and smooth."""

    SHAPES = (GELU, RELU, RELU)

    def __init__(self, tokens: int = 11, steps: int = 6, width: int = 8) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(tokens, width), nn.Embedding(steps, width)
        in_place = partial(F.relu, inplace=True)
        self.blocks = nn.ModuleList(
            [TransformerBlock(width, function) for function in (F.gelu, F.relu, in_place)]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[n, tokens] to logits of the next one."""
        x = self.place(torch.arange(tokens.shape[1])) + self.token(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, -1])
        return logits


def small_gpt(net: Any, tokens: Tensor, see: Trace) -> Tensor:
    """The same by matrices."""
    place = see("place", net.place.weight[: tokens.shape[1]] * 1.0, alone=True)
    x = see("token", net.token.weight[tokens]) + place
    for index, block in enumerate(net.blocks):
        name = f"blocks.{index}"
        x = x + see(f"{name}.attention.out_proj", _attention(block.attention, block.norm1(x)))
        up = see(f"{name}.up", block.up(block.norm2(x)), SmallGPT.SHAPES[index])
        x = x + see(f"{name}.down", block.down(up))
    return see("head", net.norm(x)[:, -1] @ net.head.weight.T)


def _attention(one: Any, x: Tensor) -> Tensor:
    """Two heads; each token sees those before it and itself."""
    width = x.shape[-1]
    queries, keys, values = (x @ one.in_proj_weight.T + one.in_proj_bias).split(width, -1)
    later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    heads = []
    for part in (slice(0, width // 2), slice(width // 2, width)):
        scores = queries[..., part] @ keys[..., part].transpose(1, 2) / math.sqrt(width // 2)
        weights = torch.exp(scores).masked_fill(later, 0.0)
        heads.append(weights / weights.sum(-1, keepdim=True) @ values[..., part])
    return torch.cat(heads, -1) @ one.out_proj.weight.T + one.out_proj.bias


def state_of(net: nn.Module) -> Mapping[str, Tensor]:
    """A copy of its parameters and buffers."""
    return {name: one.clone() for name, one in net.state_dict().items()}
