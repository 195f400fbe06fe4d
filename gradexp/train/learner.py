"""The net, its optimizer and its data: one training step, evaluation, and the state of it all."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradexp.config import Config
from gradexp.config.parts import Part
from gradexp.config.schema import PARTS
from gradexp.data import Batches, Data, Dataset, prepare, probe_examples, stream
from gradexp.errors import ConfigError
from gradexp.nn.network import Network, Parts, build
from gradexp.nn.observed import Observed
from gradexp.nn.whole import ChosenParts, draw_again, exchange_parts
from gradexp.optim import Elementwise, Update
from gradexp.optim.parameters import Parameters, keep
from gradexp.probes import PROBES, Prober, ProbeSet, Subject
from gradexp.probes.capture import random_state, restore_random_state, undisturbed
from gradexp.probes.certificates import certified_units
from gradexp.probes.finding import find_layers
from gradexp.probes.steps import StepProbe

EVALUATION_BATCH = 1024


class Learner:
    """Everything that changes while a run trains, and nothing that writes."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.device = device
        self.data = load_data(config, device)
        module, self.layers = build_module(config)
        self.network = module.to(device)
        self.batches = Batches(
            self.data, config.data.batch_size, config.data.augment.make(), config.seed
        )
        weights = [one for layer in self.layers for one in layer.weights]
        self._parameters = keep(weights, self.network.parameters())
        self.step_probe = StepProbe(self.layers, self._parameters)
        self._update = _update(config, self._parameters)
        self._schedule = config.train.schedule.make()
        self._clip = config.train.clip.make()
        self._l1 = config.train.l1
        self._base_lr: float = self._update.optimizer.param_groups[0]["lr"]
        torch.manual_seed(int(torch.randint(2**31, (), generator=stream(config.seed, "dropout"))))

    def lr(self, step: int, total: int) -> float:
        """The learning rate of a step."""
        factor: float = self._schedule(step, total)
        return self._base_lr * factor

    def observe(self, step: int) -> None:
        """Forward and backward on a step's batch, measured up to what the optimizer would get."""
        inputs, targets = self.batches.batch(step)
        logits = self.network(inputs)
        loss = F.cross_entropy(logits, targets)
        torch.autograd.backward(loss)
        self.step_probe.gradients(loss, logits.detach().argmax(1), targets)
        if self._l1 or self._clip:
            self._regularize_and_clip()
            self.step_probe.clipped()

    def _regularize_and_clip(self) -> None:
        """Add the L1 subgradient of the weights, then clip what came of it."""
        if self._l1:
            self._parameters.add_sign(self._l1)
            self.step_probe.regularized()
        if self._clip:
            self._clip(self._parameters.gradients(), self.step_probe.total_norm)

    def step(self, step: int, total: int) -> None:
        """One optimizer update, measured."""
        self.observe(step)
        self._update(self.lr(step, total))
        self.step_probe.updated()
        self._parameters.clear()

    def observe_only(self) -> None:
        """Measure step 0 without an update; the net and its gradients are left as they were."""
        with undisturbed(self.network, seed=None):
            self.observe(0)
        self._parameters.clear()

    def prober(self, examples: int | None, together: int) -> Prober:
        """What looks at the net, at so many of the training examples (None: all of them).

        `together` is how many of them go through the net at a time.
        """
        inputs, targets = probe_examples(self.data, examples)
        low, high = (
            end.view(1, -1, *[1] * (inputs.dim() - 2)).expand(1, *inputs.shape[1:])
            for end in (self.data.low, self.data.high)
        )
        subject = Subject(
            self.network,
            self.layers,
            partial(F.cross_entropy, reduction="sum"),
            partial(certified_units, self.network, self.layers, low, high),
        )
        probes = [entry.make() for entry in PROBES]
        return Prober(subject, ProbeSet(inputs, targets, together), probes)

    def wait(self) -> None:
        """Until the device has done what it was given: clocks need it, figures do not."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.device.type == "mps":
            torch.mps.synchronize()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Mean cross-entropy and accuracy on the test set, in evaluation mode."""
        self.network.eval()
        losses, right = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        images, targets = self.data.test_images, self.data.test_targets
        for chunk, labels in zip(
            torch.split(images, EVALUATION_BATCH),
            torch.split(targets, EVALUATION_BATCH),
            strict=True,
        ):
            logits = self.network(self.data.inputs(chunk))
            losses += F.cross_entropy(logits, labels, reduction="sum")
            right += (logits.argmax(1) == labels).sum()
        self.network.train()
        return float(losses) / len(targets), float(right) / len(targets)

    def state(self) -> dict[str, Any]:
        """A copy of all that the next step depends on, except its number."""
        state: dict[str, Any] = _copied(
            {
                "parameters": self._parameters.state(),
                "buffers": list(self.network.buffers()),
                "optimizer": self._update.optimizer.state_dict(),
                "random": random_state(self.device),
            }
        )
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._parameters.load(state["parameters"])
        for buffer, before in zip(self.network.buffers(), state["buffers"], strict=True):
            buffer.copy_(before)
        self._update.load_state_dict(state["optimizer"])
        self._parameters.clear()
        restore_random_state(state["random"], self.device)


def _copied(value: Any) -> Any:
    """A copy of nested dicts, lists and tensors; many times faster than `copy.deepcopy`."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value


def load_data(config: Config, device: torch.device) -> Data:
    """The run's data set on the device."""
    return prepare(
        config.data.make(),
        normalize=config.data.normalize,
        train_examples=config.data.train_examples,
        device=device,
    )


def build_module(config: Config) -> tuple[nn.Module, list[Observed]]:
    """The run's net on the CPU, initialized from its seed, and its layers in forward order.

    Raises:
        ConfigError: a part is not what its entry says or has no place, or the net takes no images
            of this shape.
    """
    if config.model.whole:
        return _build_whole(config)
    network = build_network(config)
    return network, network.observed()


def build_network(config: Config) -> Network:
    """The run's net, of a family of layers."""
    model = config.model
    activation, init, norm, residual = (_chosen(getattr(model, key)) for key in PARTS)
    parts = Parts(
        activation=activation.make(),
        init=init.make(),
        norm=norm.make(),
        residual=residual.make(),
        dropout=model.dropout,
        bias=model.bias,
        activation_name=activation.name,
        norm_name=norm.name,
    )
    return build(model.blueprint(config.data.make()), parts, stream(config.seed, "init"))


def _chosen(part: Part | None) -> Part:
    assert part is not None  # noqa: S101  the schema chooses for families of layers
    return part


def _build_whole(config: Config) -> tuple[nn.Module, list[Observed]]:
    """The run's net, of a family that makes a module as a whole."""
    model, dataset = config.model, config.data.make()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=stream(config.seed, "init"))))
        module = model.make()(dataset.shape, dataset.classes)
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"model: family '{model.family}' must make a torch module, "
                f"made {type(module).__name__}"
            )
        exchange_parts(
            module,
            ChosenParts(
                activation=model.activation.make() if model.activation else None,
                activation_name=model.activation.name if model.activation else "",
                norm=model.norm.make() if model.norm else None,
                norm_chosen=model.norm is not None,
            ),
        )
    layers = _found(module, model.family, dataset)
    if model.init:
        draw_again(layers, model.init.make(), stream(config.seed, "init"))
    return module, layers


def _found(module: nn.Module, family: str, dataset: Dataset) -> list[Observed]:
    try:
        layers = find_layers(module, torch.zeros(2, *dataset.shape))
        logits = module.eval()(torch.zeros(2, *dataset.shape))
    except (RuntimeError, ValueError, TypeError) as error:
        shape = "x".join(map(str, dataset.shape))
        raise ConfigError(
            f"model: a net of family '{family}' cannot take {shape} images: {error}"
        ) from error
    module.train()
    if not isinstance(logits, Tensor) or logits.shape != (2, dataset.classes):
        shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"model: a net of family '{family}' must return logits [n, {dataset.classes}], "
            f"returned {shown} for 2 images"
        )
    return layers


def _update(config: Config, parameters: Parameters) -> Update:
    """Weight decay pulls on the layers' weights only, not on biases, norms or slopes."""
    make = config.train.optimizer.make()
    elementwise = isinstance(make, Elementwise)
    groups = parameters.groups(config.train.weight_decay, elementwise=elementwise)
    return Update(make(groups), make.kernel if elementwise else None)
