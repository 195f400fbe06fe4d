"""Seeing pre and post of every layer: the only owner of hooks, and of leaving no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.nn.network import Layer, Network


@dataclass
class Capture:
    """What one forward pass let through: pre and post of each layer, in forward order."""

    pre: list[Tensor] = field(default_factory=list)
    post: list[Tensor] = field(default_factory=list)


@contextlib.contextmanager
def captured(layers: list[Layer]) -> Iterator[Capture]:
    """Within this context a forward pass fills the capture; the hooks go when it ends."""
    capture = Capture()

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        capture.pre.append(inputs[0])
        capture.post.append(output)

    handles = [layer.activation.register_forward_hook(keep) for layer in layers]
    try:
        yield capture
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def undisturbed(network: Network, seed: int | None = 0) -> Iterator[None]:
    """Put the net in training mode; afterwards mode, buffers and random state are as before.

    Inside, random numbers (dropout) begin at the seed, or go on as they would have.
    """
    training = network.training
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    device = next(network.parameters()).device
    state = random_state(device)
    network.train()
    if seed is not None:
        _seed(seed, device)
    try:
        yield
    finally:
        restore_random_state(state, device)
        network.train(training)
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])


def _seed(seed: int, device: torch.device) -> None:
    """Like `torch.manual_seed`, without what it does for devices that are not used."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    if device.type == "mps":
        torch.mps.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of torch's global random streams on the CPU and on the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["device"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["device"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["device"], device)
    if device.type == "mps":
        torch.mps.set_rng_state(state["device"])
