"""Checkpoints of a run, taken apart and put together again by the letter of their format."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

DIGEST_BYTES = 32


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds."""
    archive = io.BytesIO(path.read_bytes()[DIGEST_BYTES:])
    return dict(torch.load(archive, weights_only=True))


def write_checkpoint(path: Path, content: object) -> None:
    """A checkpoint that is whole, whatever it holds."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
