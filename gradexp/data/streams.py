"""Random streams: stateless functions of the seed and of what the numbers are for."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def stream(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """A CPU generator for one purpose, seeded by a hash of all arguments.

    Whoever asks with the same arguments gets the same numbers, whatever was drawn before: a
    resumed run needs no saved random state. CPU on every device, so that the device does not
    change what is drawn.
    """
    import torch

    words = "/".join(map(str, (seed, purpose, *indices)))
    digest = hashlib.blake2b(words.encode(), digest_size=4).digest()  # the engine reads 32 bits
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
