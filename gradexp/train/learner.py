"""The net, its optimizer and its data: one training step, evaluation, and the state of it all."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradexp.config import Config
from gradexp.data import Batches, Data, prepare, probe_examples, stream
from gradexp.nn.network import Network, Parts, build
from gradexp.optim import Elementwise, Update
from gradexp.optim.parameters import Parameters, keep
from gradexp.probes import PROBES, Prober, ProbeSet, Subject
from gradexp.probes.capture import random_state, restore_random_state, undisturbed
from gradexp.probes.certificates import certified_units
from gradexp.probes.steps import StepProbe

EVALUATION_BATCH = 1024


class Learner:
    """Everything that changes while a run trains, and nothing that writes."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.device = device
        self.data = load_data(config, device)
        self.network = build_network(config).to(device)
        self.layers = self.network.observed()
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


def build_network(config: Config) -> Network:
    """The run's net on the CPU, initialized from its seed."""
    model = config.model
    parts = Parts(
        activation=model.activation.make(),
        init=model.init.make(),
        norm=model.norm.make(),
        residual=model.residual.make(),
        dropout=model.dropout,
        bias=model.bias,
        activation_name=model.activation.name,
        norm_name=model.norm.name,
    )
    return build(config.blueprint(), parts, stream(config.seed, "init"))


def _update(config: Config, parameters: Parameters) -> Update:
    """Weight decay pulls on the layers' weights only, not on biases, norms or slopes."""
    make = config.train.optimizer.make()
    elementwise = isinstance(make, Elementwise)
    groups = parameters.groups(config.train.weight_decay, elementwise=elementwise)
    return Update(make(groups), make.kernel if elementwise else None)
