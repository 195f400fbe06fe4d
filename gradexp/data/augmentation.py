"""Random changes to training images, for a whole batch at once on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gradexp.registry import Count, Registry

if TYPE_CHECKING:
    import torch

    Apply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Augmentation:
    """A change to images, decided by integers that each example draws.

    `ranges` has one entry per draw of an example: the draw is uniform in 0 .. range - 1.
    `apply(images, draws, low)` takes images [b, C, H, W], draws int64 [len(ranges), b] and the
    inputs that stand for raw 0, [C, 1, 1], and returns new images [b, C, H, W].
    """

    ranges: tuple[int, ...]
    apply: Apply


AUGMENTATIONS: Registry[Callable[..., Augmentation]] = Registry(
    "augmentation", "How training images are changed at random.", product=Augmentation
)


@AUGMENTATIONS.register("none")
def none() -> Augmentation:
    """Images as they are."""
    return Augmentation((), lambda images, _draws, _low: images)


@AUGMENTATIONS.register("flip")
def flip() -> Augmentation:
    """Every second image mirrored left to right, by chance."""
    return Augmentation((2,), lambda images, draws, _low: _flip(images, draws[0]))


@AUGMENTATIONS.register("crop", source="He et al. 2016")
def crop(*, pad: Count = 4) -> Augmentation:
    """A window of the image's own size at a random place of the image padded with raw zeros."""
    return Augmentation(
        (2 * pad + 1,) * 2,
        lambda images, draws, low: _crop(images, draws[0], draws[1], low, pad),
    )


@AUGMENTATIONS.register("crop_flip", source="He et al. 2016")
def crop_flip(*, pad: Count = 4) -> Augmentation:
    """First crop, then flip."""
    return Augmentation((2 * pad + 1, 2 * pad + 1, 2), partial(_crop_flip, pad))


def _crop_flip(
    pad: int, images: torch.Tensor, draws: torch.Tensor, low: torch.Tensor
) -> torch.Tensor:
    return _flip(_crop(images, draws[0], draws[1], low, pad), draws[2])


def _flip(images: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    return images.flip(-1).where(mirrored.bool().view(-1, 1, 1, 1), images)


def _crop(
    images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, low: torch.Tensor, pad: int
) -> torch.Tensor:
    """The windows whose upper left corners are (rows, columns) of the padded images."""
    import torch

    count, channels, height, width = images.shape
    padded = low.expand(count, channels, height + 2 * pad, width + 2 * pad).clone()
    padded[:, :, pad : pad + height, pad : pad + width] = images
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, rows, columns]
