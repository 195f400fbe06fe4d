"""Somebody's module and optimizer: what they are, where they lie, and how they are written down."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from gradexp.probes.following import tensors_of
from gradexp.records import RunDir


def plain_module(model: nn.Module) -> nn.Module:
    """The module inside what compiles it or spreads it over processes."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def plain_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside what hands its steps on, as Accelerate's does; it is the one hooked."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def batch_size(inputs: Any) -> int | None:
    """How many examples a batch has, of whatever form; None where it holds no tensor of them."""
    first = next(tensors_of([inputs]), None)
    return len(first) if first is not None and first.dim() else None


def free_run(path: Path) -> RunDir:
    """The run directory there; where one lies already, the next with a number behind its name."""
    count, run = 1, RunDir(path)
    while run.manifest.exists():
        count += 1
        run = RunDir(path.with_name(f"{path.name}-{count}"))
    run.make()
    return run


def on_device(examples: Any, device: torch.device) -> Any:
    """A tensor, or a tuple or mapping of them and of switches, on the device."""
    if isinstance(examples, Tensor):
        return examples.to(device)
    if isinstance(examples, Mapping):
        return {name: on_device(one, device) for name, one in examples.items()}
    if isinstance(examples, list | tuple):
        return tuple(on_device(one, device) for one in examples)
    return examples


def number(value: float | Tensor | None) -> float | None:
    """A learning rate, which may be a tensor."""
    return None if value is None else float(value)


def described(
    module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], loss: Any
) -> dict[str, Any]:
    """What is watched, as `config.yaml` has it."""
    count = sum(parameter.numel() for parameter in module.parameters())
    content: dict[str, Any] = {"watched": type(module).__name__, "parameters": count}
    if loss is not None:
        content["loss"] = loss.__name__ if inspect.isroutine(loss) else type(loss).__name__
    if optimizers:
        content["optimizer"] = _optimizer(optimizers[0])
    return content


def _optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    plain = (bool, int, float, str, type(None))
    options = {key: one for key, one in optimizer.defaults.items() if isinstance(one, plain)}
    options = {key: one for key, one in options.items() if one is not None}
    return {"name": type(optimizer).__name__.lower(), **options}


def to_yaml(content: dict[str, Any]) -> bytes:
    """As YAML text."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()
