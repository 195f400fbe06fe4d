"""An independent, slow implementation in float64: own forward, losses, clips and optimizers.

It takes nets from `gradexp.nn` as containers of parameters and nothing else from what is tested.
Networks without batch norm see one example at a time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gradexp.config import Config, load_config
from gradexp.data import Batches, probe_examples
from gradexp.nn.network import Layer, Network
from gradexp.records import RunDir
from gradexp.train import execute
from gradexp.train.learner import build_network, load_data

CPU = torch.device("cpu")
BASE = """
name: figures
device: cpu
data: {dataset: synthetic, classes: 3, channels: 2, size: 6, examples: 40, batch_size: 8}
model: {init: {name: kaiming_normal, bias_std: 0.1}}
train: {steps: 6}
probe: {every: 3, examples: 12}
"""
MLP = ("model={family: mlp, depth: 4, width: 7, init: {name: kaiming_normal, bias_std: 0.1}}",)
CNN = (
    "model={family: cnn, depth: 3, width: 3, stages: 2, init: {name: xavier_normal, gain: 1.5}}",
)
MOBILE = ("model={family: mobilenet_v1, depth: 3, width: 3, stages: 2}",)
CASES: dict[str, tuple[str, ...]] = {
    "mlp sgd": (*MLP, "train.optimizer={name: sgd, lr: 0.1, momentum: 0.9}"),
    "mlp nesterov clip norm": (
        *MLP,
        "model.activation=tanh",
        "train.optimizer={name: sgd, lr: 0.1, momentum: 0.8, nesterov: true}",
        "train.clip={name: norm, max_norm: 0.3}",
        "train.schedule={name: cosine, final: 0.1}",
    ),
    "mlp adam clip value": (
        *MLP,
        "model.activation=sigmoid",
        "train.optimizer={name: adam, lr: 0.01}",
        "train.clip={name: value, max_value: 0.01}",
    ),
    "mlp adamw decay prelu": (
        *MLP,
        "model.activation=prelu",
        "train.optimizer={name: adamw, lr: 0.01}",
        "train.weight_decay=0.1",
    ),
    "mlp rmsprop l1": (
        *MLP,
        "model.activation=elu",
        "train.optimizer={name: rmsprop, lr: 0.003, momentum: 0.5}",
        "train.l1=0.02",
    ),
    "mlp decay clip l1": (
        *MLP,
        "model.activation=selu",
        "train.l1=0.02",
        "train.weight_decay=0.1",
        "train.clip={name: norm, max_norm: 0.5}",
    ),
    "mlp batch norm residual": (*MLP, "model.norm=batch", "model.residual=identity"),
    "mlp layer norm residual": (
        *MLP,
        "model.activation=silu",
        "model.norm=layer",
        "model.residual={name: identity, span: 1, scale: 0.5}",
    ),
    "mlp hardtanh": (*MLP, "model.activation=hardtanh", "model.init={name: normal, std: 1.0}"),
    "mlp identity": (*MLP, "model.activation=identity", "model.bias=false", "model.init=torch"),
    "cnn relu": (*CNN, "train.clip={name: norm, max_norm: 0.2}"),
    "cnn batch norm residual": (
        *CNN,
        "model.activation={name: leaky_relu, negative_slope: 0.1}",
        "model.norm=batch",
        "model.residual={name: identity, span: 1}",
        "train.optimizer={name: adam, lr: 0.003}",
    ),
    "cnn layer norm": (*CNN, "model.activation=softplus", "model.norm=layer"),
    "mobilenet batch norm residual": (
        *MOBILE,
        "model.activation=relu6",
        "model.norm=batch",
        "model.residual=identity",
    ),
    "mobilenet layer norm": (*MOBILE, "model.activation=hardswish", "model.norm=layer"),
    "mobilenet plain": (*MOBILE, "model.activation=gelu", "model.bias=false"),
    "mobilenet hardsigmoid": (*MOBILE, "model.activation=hardsigmoid"),
}


def config_of(folder: Path, *overrides: str) -> Config:
    path = folder / "figures.yaml"
    path.write_text(BASE)
    return load_config(path, overrides)


def run_of(folder: Path, *overrides: str) -> RunDir:
    return execute(config_of(folder, *overrides), folder / "runs").run


# --- forward ---------------------------------------------------------------------------------


@dataclass
class Trace:
    pre: list[Tensor] = field(default_factory=list)
    post: list[Tensor] = field(default_factory=list)


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def between(x: Tensor, low: float, high: float) -> Tensor:
    inside = torch.where(x > low, x, torch.full_like(x, low))
    return torch.where(inside < high, inside, torch.full_like(x, high))


ACTIVATION: dict[type[nn.Module], Callable[[nn.Module, Tensor], Tensor]] = {
    nn.Identity: lambda _m, x: x * 1.0,
    nn.ReLU: lambda _m, x: relu(x),
    nn.ReLU6: lambda _m, x: between(x, 0.0, 6.0),
    nn.Sigmoid: lambda _m, x: 1 / (1 + torch.exp(-x)),
    nn.Tanh: lambda _m, x: 1 - 2 / (torch.exp(2 * x) + 1),
    nn.LeakyReLU: lambda m, x: relu(x) - float(m.negative_slope) * relu(-x),
    nn.PReLU: lambda m, x: relu(x) - per_unit(m.weight, x) * relu(-x),
    nn.ELU: lambda _m, x: relu(x) + torch.exp(-relu(-x)) - 1,
    nn.SELU: lambda _m, x: (
        1.0507009873554805 * (relu(x) + 1.6732632423543772 * (torch.exp(-relu(-x)) - 1))
    ),
    nn.Softplus: lambda _m, x: torch.log(1 + torch.exp(x)),
    nn.SiLU: lambda _m, x: x / (1 + torch.exp(-x)),
    nn.GELU: lambda _m, x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    nn.Hardtanh: lambda _m, x: between(x, -1.0, 1.0),
    nn.Hardsigmoid: lambda _m, x: between(x + 3, 0.0, 6.0) / 6,
    nn.Hardswish: lambda _m, x: x * between(x + 3, 0.0, 6.0) / 6,
}


def per_unit(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))


def activate(layer: Layer, pre: Tensor) -> Tensor:
    return ACTIVATION[type(layer.activation)](layer.activation, pre)


def linear_map(layer: Layer, x: Tensor) -> Tensor:
    weight, spec = layer.weight, layer.spec
    if spec.kind == "linear":
        out = torch.einsum("ni,oi->no", x, weight)
    else:
        out = convolve(x, weight, spec.stride, depthwise=spec.kind == "depthwise")
    return out if layer.bias is None else out + per_unit(layer.bias, out)


def convolve(x: Tensor, weight: Tensor, stride: int, *, depthwise: bool) -> Tensor:
    """A sum over the positions of the kernel, zeros around the image."""
    size = weight.shape[-1]
    pad, (height, width) = size // 2, x.shape[2:]
    wide = x.new_zeros(*x.shape[:2], height + 2 * pad, width + 2 * pad)
    wide[:, :, pad : pad + height, pad : pad + width] = x
    total: Tensor | float = 0.0
    for row in range(size):
        for column in range(size):
            seen = wide[:, :, row : row + height : stride, column : column + width : stride]
            kernel = weight[:, :, row, column]
            equation = "nchw,co->nchw" if depthwise else "nchw,oc->nohw"
            total = total + torch.einsum(equation, seen, kernel)
    assert isinstance(total, Tensor)
    return total


def normalize(norm: nn.Module, x: Tensor, *, training: bool) -> Tensor:
    if isinstance(norm, nn.Identity):
        return x
    if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
        mean, variance = batch_statistics(norm, x, training=training)
    else:
        axes = tuple(range(1, x.dim()))
        mean = x.mean(axes, keepdim=True)
        variance = ((x - mean) ** 2).mean(axes, keepdim=True)
    scaled = (x - mean) / torch.sqrt(variance + norm.eps)
    return scaled * per_unit(norm.weight, x) + per_unit(norm.bias, x)


def batch_statistics(norm: nn.Module, x: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
    if not training:
        return per_unit(norm.running_mean, x), per_unit(norm.running_var, x)
    axes = (0, *range(2, x.dim()))
    mean = x.mean(axes, keepdim=True)
    variance = ((x - mean) ** 2).mean(axes, keepdim=True)
    count = x.numel() / x.shape[1]
    with torch.no_grad():
        seen = mean.flatten(), variance.flatten() * count / (count - 1)
        for name, value in zip(("running_mean", "running_var"), seen, strict=True):
            setattr(norm, name, getattr(norm, name) * (1 - norm.momentum) + value * norm.momentum)
    return mean, variance


def forward(network: Network, inputs: Tensor, *, training: bool = True) -> tuple[Trace, Tensor]:
    """Pre and post of each layer, and the logits, for inputs [n, C, H, W]."""
    trace, x = Trace(), inputs if network.spatial else inputs.flatten(1)
    for block in network.blocks:
        out = x
        for layer in block.layers:
            out = through(layer, out, trace, training=training)
        x = out if block.join is None else x + block.join.scale * out
        if block.pool is not None:
            n, c, h, w = x.shape
            x = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2)
            x = x.amax((3, 5))
    x = x.sum((2, 3)) / (x.shape[2] * x.shape[3]) if network.spatial else x
    return trace, through(network.readout, x, trace, training=training)


def through(layer: Layer, x: Tensor, trace: Trace, *, training: bool) -> Tensor:
    trace.pre.append(normalize(layer.norm, linear_map(layer, x), training=training))
    trace.post.append(activate(layer, trace.pre[-1]))
    return trace.post[-1]


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each example."""
    shifted = logits - logits.detach().amax(1, keepdim=True)
    return torch.log(torch.exp(shifted).sum(1)) - shifted[torch.arange(len(targets)), targets]


def groups(network: Network, count: int) -> list[slice]:
    """Which examples go through the net together: one by one unless batch norm mixes them."""
    mixes = any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in network.modules())
    return [slice(0, count)] if mixes else [slice(i, i + 1) for i in range(count)]


# --- training --------------------------------------------------------------------------------


def length(*tensors: Tensor) -> float:
    return math.sqrt(sum(float(value) ** 2 for one in tensors for value in one.flatten()))


@dataclass
class LayerFigures:
    grad_norm: float
    clipped_grad_norm: float
    bias_grad_norm: float
    weight_norm: float
    update_norm: float


@dataclass
class StepFigures:
    loss: float
    accuracy: float
    lr: float
    grad_norm: float
    clip_coefficient: float
    layers: list[LayerFigures]


class Reference:
    """The training of a config in float64; `snapshots[s]` is the net after s updates."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.data = load_data(config, CPU)
        self.batches = Batches(
            self.data, config.data.batch_size, config.data.augment.make(), config.seed
        )
        self.network = build_network(config).double()
        self.layers = self.network.layers()
        self.weights = {id(layer.weight) for layer in self.layers}
        self.memory: dict[int, dict[str, Tensor]] = {}
        self.snapshots = [copy.deepcopy(self.network)]
        self.steps: list[StepFigures] = []
        for step in range(config.train.steps or 0):
            self.steps.append(self.step(step))
            self.snapshots.append(copy.deepcopy(self.network))

    def gradients(self, step: int) -> tuple[list[Tensor], float, float]:
        """Gradients of the mean loss, the loss and the accuracy."""
        inputs, targets = self.batches.batch(step)
        inputs, total, right = inputs.double(), 0.0, 0
        parameters = list(self.network.parameters())
        gradients = [torch.zeros_like(one) for one in parameters]
        for group in groups(self.network, len(targets)):
            _, logits = forward(self.network, inputs[group])
            loss = losses(logits, targets[group]).sum() / len(targets)
            total += float(loss.detach())
            right += int((logits.argmax(1) == targets[group]).sum())
            for one, more in zip(gradients, torch.autograd.grad(loss, parameters), strict=True):
                one.add_(more)
        return gradients, total, right / len(targets)

    def step(self, step: int) -> StepFigures:
        gradients, loss, accuracy = self.gradients(step)
        parameters = list(self.network.parameters())
        at = {id(parameter): index for index, parameter in enumerate(parameters)}
        regularized = [
            g + self.config.train.l1 * torch.sign(p.detach()) if id(p) in self.weights else g
            for p, g in zip(parameters, gradients, strict=True)
        ]
        clipped = self.clip(regularized)
        before = [parameter.detach().clone() for parameter in parameters]
        lr = self.lr(step)
        for parameter, gradient in zip(parameters, clipped, strict=True):
            self.update(parameter, gradient, lr, step)
        rows = []
        for layer in self.layers:
            w, bias = at[id(layer.weight)], layer.bias
            rows.append(
                LayerFigures(
                    length(gradients[w]),
                    length(clipped[w]),
                    math.nan if bias is None else length(gradients[at[id(bias)]]),
                    length(before[w]),
                    length(parameters[w].detach() - before[w]),
                )
            )
        ratio = length(*clipped) / length(*regularized)
        return StepFigures(loss, accuracy, lr, length(*gradients), ratio, rows)

    def lr(self, step: int) -> float:
        base: float = self.config.train.optimizer.lr
        if self.config.train.schedule.name == "constant":
            return base
        final: float = self.config.train.schedule.final
        cosine = math.cos(math.pi * step / (self.config.train.steps or 1))
        return base * (final + (1 - final) * (1 + cosine) / 2)

    def clip(self, gradients: list[Tensor]) -> list[Tensor]:
        clip = self.config.train.clip
        if clip.name == "norm":
            total = length(*gradients)
            return [g * min(1.0, clip.max_norm / total) for g in gradients]
        if clip.name == "value":
            return [between(g, -clip.max_value, clip.max_value) for g in gradients]
        return [g.clone() for g in gradients]

    @torch.no_grad()
    def update(self, p: Tensor, g: Tensor, lr: float, step: int) -> None:
        optimizer = self.config.train.optimizer
        decay = self.config.train.weight_decay if id(p) in self.weights else 0.0
        kept = self.memory.setdefault(id(p), {})

        def mean(name: str, share: float, value: Tensor) -> Tensor:
            kept[name] = share * kept.get(name, torch.zeros_like(value)) + (1 - share) * value
            return kept[name]

        def heavy_ball(value: Tensor) -> Tensor:
            kept["ball"] = optimizer.momentum * kept.get("ball", torch.zeros_like(p)) + value
            return kept["ball"]

        if optimizer.name == "adamw":
            p.mul_(1 - lr * decay)
        else:
            g = g + decay * p
        if optimizer.name == "sgd":
            ball = heavy_ball(g)
            p.sub_(lr * (g + optimizer.momentum * ball if optimizer.nesterov else ball))
        elif optimizer.name == "rmsprop":
            square = mean("square", optimizer.alpha, g**2)
            p.sub_(lr * heavy_ball(g / (torch.sqrt(square) + optimizer.eps)))
        else:
            first = mean("first", optimizer.beta1, g) / (1 - optimizer.beta1 ** (step + 1))
            second = mean("second", optimizer.beta2, g**2) / (1 - optimizer.beta2 ** (step + 1))
            p.sub_(lr * first / (torch.sqrt(second) + optimizer.eps))

    def test(self, step: int) -> tuple[float, float]:
        """Loss and accuracy on the test set after `step` updates."""
        targets = self.data.test_targets
        _, logits = forward(self.snapshots[step], self.data.test_inputs.double(), training=False)
        right = float((logits.argmax(1) == targets).double().mean())
        return float(losses(logits, targets).mean().detach()), right

    def look(self, step: int) -> list[LayerLook]:
        """What a probe after `step` updates must see of each layer."""
        examples = self.config.probe.examples
        inputs, targets = probe_examples(self.data, None if examples == "all" else int(examples))
        batches = -(-len(targets) // self.batches.batch_size)
        looks = [LayerLook(layer) for layer in self.snapshots[step].layers()]
        for chunk, labels in zip(
            inputs.double().tensor_split(batches), targets.tensor_split(batches), strict=True
        ):
            for group in groups(self.network, len(labels)):
                network = copy.deepcopy(self.snapshots[step])
                look_at(network, looks, chunk[group], labels[group])
        return looks


@dataclass
class LayerLook:
    """Everything seen of a layer, example after example: arrays [n, units, ...]."""

    layer: Layer
    pres: list[np.ndarray] = field(default_factory=list)
    posts: list[np.ndarray] = field(default_factory=list)
    slopes: list[np.ndarray] = field(default_factory=list)
    pre_grads: list[np.ndarray] = field(default_factory=list)
    weight_grads: list[np.ndarray] = field(default_factory=list)

    @property
    def pre(self) -> np.ndarray:
        return np.concatenate(self.pres)

    @property
    def post(self) -> np.ndarray:
        return np.concatenate(self.posts)

    @property
    def slope(self) -> np.ndarray:
        return np.concatenate(self.slopes)

    @property
    def pre_grad_norm(self) -> float:
        return math.sqrt(sum((g**2).sum() for g in self.pre_grads) / len(self.pre))


def look_at(network: Network, looks: list[LayerLook], inputs: Tensor, targets: Tensor) -> None:
    layers = network.layers()
    trace, logits = forward(network, inputs)
    loss = losses(logits, targets).sum()
    weights = [layer.weight for layer in layers]
    gradients = torch.autograd.grad(loss, [*trace.pre, *weights])
    for index, (layer, look) in enumerate(zip(layers, looks, strict=True)):
        point = trace.pre[index].detach().requires_grad_()
        (slope,) = torch.autograd.grad(activate(layer, point).sum(), point)
        look.pres.append(trace.pre[index].detach().numpy())
        look.posts.append(trace.post[index].detach().numpy())
        look.slopes.append(slope.numpy())
        look.pre_grads.append(gradients[index].numpy())
        look.weight_grads.append(gradients[len(layers) + index].numpy())
