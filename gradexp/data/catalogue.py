"""The catalogue of data sets, and the ones that need no files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradexp.data.streams import stream
from gradexp.registry import Count, NonNegative, Registry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Splits:
    """Raw examples: images [n, C, H, W] as uint8 (0 to 255) or float (0 to 1), targets int64 [n].

    `note` says what a reader of results must know about this copy of the data, `checksum` stands
    for all of it where that is known already.
    """

    train_images: torch.Tensor
    train_targets: torch.Tensor
    test_images: torch.Tensor
    test_targets: torch.Tensor
    note: str = ""
    checksum: str = ""


@dataclass(frozen=True)
class Dataset:
    """What a data set looks like, and how to load it.

    `shape` is (C, H, W) of one input, `load` does the reading (and downloading). Every value of an
    input lies in [0, 1] before normalization: certificates rest on that promise.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int
    load: Callable[[], Splits]
    note: str = ""


DATASETS: Registry[Callable[..., Dataset]] = Registry(
    "dataset", "What the network learns from.", product=Dataset
)


@DATASETS.register("digits", source="Alpaydin & Kaynak 1998")
def digits() -> Dataset:
    """Real 8x8 handwritten digits, embedded: 1,442 to train, 355 to test, nothing to download."""
    return Dataset("digits", (1, 8, 8), 10, _load_digits)


def _load_digits() -> Splits:
    """Every fifth example of each class, in the order of the file, is a test example."""
    import numpy as np
    import torch
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy((bunch.images / 16).astype(np.float32)).unsqueeze(1)
    targets = torch.from_numpy(bunch.target.astype(np.int64))
    one_hot = torch.nn.functional.one_hot(targets)
    rank_in_class = (one_hot.cumsum(0) * one_hot).sum(1)
    test = rank_in_class % 5 == 0
    return Splits(images[~test], targets[~test], images[test], targets[test])


@DATASETS.register("synthetic")
def synthetic(
    *,
    classes: Count = 10,
    channels: Count = 1,
    size: Count = 8,
    examples: Count = 2000,
    noise: NonNegative = 0.5,
) -> Dataset:
    """One random image per class plus uniform noise in [-noise, noise], clipped to [0, 1].

    `examples` are for training; a fifth as many (but at least one per class) are for testing. The
    images are the same on every machine and for every seed of a run.
    """
    shape = (channels, size, size)

    def load() -> Splits:
        import torch

        prototypes = torch.rand(classes, *shape, generator=stream(0, "synthetic prototypes"))
        train = _noisy(prototypes, examples, noise, "train")
        test = _noisy(prototypes, max(classes, examples // 5), noise, "test")
        return Splits(*train, *test)

    return Dataset("synthetic", shape, classes, load)


def _noisy(
    prototypes: torch.Tensor, count: int, noise: float, split: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` images and targets, the classes in turn."""
    import torch

    targets = torch.arange(count) % len(prototypes)
    generator = stream(0, "synthetic noise " + split)
    draws = torch.rand(count, *prototypes.shape[1:], generator=generator)
    return draws.mul_(2).sub_(1).mul_(noise).add_(prototypes[targets]).clamp_(0, 1), targets
