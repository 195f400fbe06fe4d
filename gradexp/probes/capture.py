"""Seeing pre and post of every layer: the only owner of hooks, and of leaving no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradexp.nn.observed import Observed
from gradexp.probes.following import Arguments, Call, Follower


@dataclass
class Capture:
    """What one forward pass let through: of each layer its calls, and all of them, in order."""

    calls: list[list[Call]] = field(default_factory=list)
    all_calls: list[Call] = field(default_factory=list)

    @property
    def pre(self) -> list[Tensor | None]:
        """Pre of each layer as [n, units, ...]; None of a layer that was not called."""
        return [_joined(calls, "pre") for calls in self.calls]

    @property
    def post(self) -> list[Tensor | None]:
        """Post of each layer, alike."""
        return [_joined(calls, "post") for calls in self.calls]


def _joined(calls: Sequence[Call], which: str) -> Tensor | None:
    return in_units(calls, [getattr(call, which) for call in calls]) if calls else None


def in_units(calls: Sequence[Call], values: Sequence[Tensor]) -> Tensor:
    """The values of a layer's calls as one tensor [n, units, ...]; several calls are positions."""
    moved = [
        value.movedim(-1, 1) if call.axis == -1 and value.dim() > 2 else value  # noqa: PLR2004
        for call, value in zip(calls, values, strict=True)
    ]
    if len(moved) == 1:
        return moved[0]
    return torch.cat([one.reshape(*one.shape[:2], -1) for one in moved], 2)


@contextlib.contextmanager
def captured(layers: Sequence[Observed], inputs: Any) -> Iterator[Capture]:
    """Within this context a forward pass of the inputs fills the capture; then the hooks go."""
    follower = Follower([layer.weights for layer in layers], inputs)
    capture = Capture(follower.calls, follower.all_calls)
    # Layers may share a module; it is hooked once.
    hooks = dict(hook for layer in layers for hook in _hooks(layer, follower))
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        with follower:
            yield capture
    finally:
        for handle in handles:
            handle.remove()


def _hooks(layer: Observed, follower: Follower) -> Iterator[tuple[nn.Module, Any]]:
    """Modules that are norms or activations as a whole, whatever functions they call."""
    yield from ((module, follower.passed) for module in layer.passing)
    yield from ((module, follower.activated) for module in layer.activations)


def on_call(module: nn.Module, told: Callable[[Arguments], None]) -> RemovableHandle:
    """Tell of every call of a module, before it, until the handle is removed."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        told(Arguments(args, kwargs))

    return module.register_forward_pre_hook(_uncompiled(hook), with_kwargs=True)


def on_return(module: nn.Module, told: Callable[[Arguments, Any], None]) -> RemovableHandle:
    """Tell of every call of a module and its output, after it, until the handle is removed."""

    def hook(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        told(Arguments(args, kwargs), output)

    return module.register_forward_hook(_uncompiled(hook), with_kwargs=True)


def _uncompiled(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook of a module inside a compiled one would become a part of what is compiled."""
    disabled: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return disabled


@contextlib.contextmanager
def undisturbed(module: nn.Module, seed: int | None = 0) -> Iterator[None]:
    """In training mode; afterwards modes, buffers and random state are as before.

    A module in training whose parts are not all (frozen statistics) stays as it is. Inside, random
    numbers (dropout) begin at the seed, or go on as they would have.
    """
    # Modes are kept part by part: `train(True)` at the end would thaw what somebody froze.
    modes = [(part, part.training) for part in module.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    device = next(module.parameters()).device
    state = random_state(device)
    # In training mode since that is what is trained: batch norm in evaluation is another net, with
    # other gradients.
    if not module.training:
        module.train()
    if seed is not None:
        _seed(seed, device)
    try:
        yield
    finally:
        restore_random_state(state, device)
        for part, mode in modes:
            part.training = mode
        # Running statistics have moved by the look; written back in place, for others hold them.
        for buffer, before in buffers:
            buffer.copy_(before)


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
