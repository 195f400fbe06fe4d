"""Where a run computes, and how it is made to repeat bit for bit."""

from __future__ import annotations

import os

import torch

from gradexp.errors import ConfigError


def pick(name: str) -> torch.device:
    """The device of that name; `auto` is the first of cuda, mps and cpu that is there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((device for device, available in there.items() if available), "cpu")
    if not there.get(name, True):
        usable = [*(device for device, available in there.items() if available), "cpu"]
        raise ConfigError(
            f"device: {name} is not available here; usable: auto, {', '.join(usable)}"
        )
    return torch.device(name)


def make_repeatable(device: torch.device) -> None:
    """The same bits at every run: no autotuning, no reduced precision, deterministic kernels."""
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Nothing reads what it has not set.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
