"""Whole data sets as normalized tensors on the device."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradexp.data.catalogue import Dataset, Splits
from gradexp.data.streams import stream
from gradexp.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

    Examples = tuple[torch.Tensor, torch.Tensor]

CHUNK = 1024  # examples at a time: small enough for the processor's cache


@dataclass(frozen=True)
class Data:
    """A data set ready for training, as a whole on the device.

    Images [n, C, H, W] are raw bytes, a quarter of the memory of floats, or float32 that needs no
    more work; `inputs` makes inputs of either. Targets are int64 [n]. `low` and `high` (float64
    [C], CPU) are the normalized values of raw 0 and 1: every input lies between them, exactly.
    `fingerprint` tells sets apart: another image or target in use, another fingerprint.
    """

    train_images: torch.Tensor
    train_targets: torch.Tensor
    test_images: torch.Tensor
    test_targets: torch.Tensor
    scaling: Scaling
    low: torch.Tensor
    high: torch.Tensor
    classes: int
    fingerprint: str
    notes: tuple[str, ...] = ()

    def inputs(self, images: torch.Tensor) -> torch.Tensor:
        """Normalized float32 inputs [n, C, H, W] of some of the images."""
        import torch

        return self.scaling.apply(images) if images.dtype == torch.uint8 else images

    @property
    def train_inputs(self) -> torch.Tensor:
        """All training inputs, float32 [n, C, H, W]."""
        return self.inputs(self.train_images)

    @property
    def test_inputs(self) -> torch.Tensor:
        """All test inputs, float32 [n, C, H, W]."""
        return self.inputs(self.test_images)


def prepare(
    dataset: Dataset, *, normalize: bool, train_examples: int | None, device: torch.device
) -> Data:
    """Load a data set and move it to the device as a whole, ready to be normalized there.

    Args:
        dataset: What to load.
        normalize: Subtract the mean and divide by the standard deviation of each channel, over the
            training examples in use; a constant channel is not divided.
        train_examples: Use so many, the first of a fixed permutation; None uses all.
        device: Where the tensors go.

    Raises:
        DataError: The data is missing, damaged, or not what the data set declares.
        ConfigError: There are fewer training examples than asked for.
    """
    splits = dataset.load()
    _check(dataset, splits)
    available = len(splits.train_targets)
    splits = _first_examples(dataset, splits, train_examples)
    white = _white(splits.train_images)
    scaling = (
        Scaling.of(splits.train_images) if normalize else Scaling.none(white, dataset.shape[0])
    )
    low, high = scaling.bounds(white)
    used = len(splits.train_targets)
    part = "" if used == available else f"{used:,} of {available:,} training examples"
    return Data(
        train_images=scaling.unless_bytes(splits.train_images).to(device),
        train_targets=splits.train_targets.to(device),
        test_images=scaling.unless_bytes(splits.test_images).to(device),
        test_targets=splits.test_targets.to(device),
        scaling=scaling.to(device),
        low=low,
        high=high,
        classes=dataset.classes,
        fingerprint=_fingerprint(splits),
        notes=tuple(note for note in (dataset.note, splits.note, part) if note),
    )


def probe_examples(data: Data, count: int | None) -> Examples:
    """The fixed probe set: inputs [count, C, H, W] and targets [count].

    The first `count` training examples of a permutation that no seed changes; all of them, in
    their own order, when `count` is None or more than there are.
    """
    available = len(data.train_targets)
    if count is None or count >= available:
        return data.train_inputs, data.train_targets
    chosen = _fixed_permutation(available, "probe")[:count].to(data.train_targets.device)
    return data.inputs(data.train_images[chosen]), data.train_targets[chosen]


def _fixed_permutation(count: int, purpose: str) -> torch.Tensor:
    import torch

    return torch.randperm(count, generator=stream(0, purpose))


def _first_examples(dataset: Dataset, splits: Splits, count: int | None) -> Splits:
    if count is None:
        return splits
    available = len(splits.train_targets)
    if not 1 <= count <= available:
        raise ConfigError(
            f"data.train_examples: got {count}, but {dataset.name} has {available} training "
            f"examples; allowed: 1 to {available}, or null for all"
        )
    chosen = _fixed_permutation(available, "train_examples")[:count]
    return dataclasses.replace(
        splits,
        train_images=splits.train_images[chosen],
        train_targets=splits.train_targets[chosen],
    )


def _check(dataset: Dataset, splits: Splits) -> None:
    """What a data set declares must hold for what it loads."""
    _check_split(dataset, "training", splits.train_images, splits.train_targets)
    _check_split(dataset, "test", splits.test_images, splits.test_targets)


def _check_split(dataset: Dataset, split: str, images: torch.Tensor, targets: torch.Tensor) -> None:
    where = f"{dataset.name}, {split} examples"
    if tuple(images.shape[1:]) != dataset.shape:
        raise DataError(f"{where}: images are {_by(images.shape[1:])}, not {_by(dataset.shape)}")
    if len(images) != len(targets) or len(images) == 0:
        raise DataError(f"{where}: {len(images)} images and {len(targets)} targets")
    if not 0 <= int(targets.min()) <= int(targets.max()) < dataset.classes:
        raise DataError(
            f"{where}: targets must be 0 to {dataset.classes - 1}, got {_span(targets)}"
        )
    if _white(images) == 1 and not 0 <= float(images.min()) <= float(images.max()) <= 1:
        raise DataError(f"{where}: values must lie in [0, 1], got {_span(images)}")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _span(values: torch.Tensor) -> str:
    return f"{values.min().item():g} to {values.max().item():g}"


@dataclass(frozen=True)
class Scaling:
    """Raw values to inputs: (value - mean) / std, float32 [C, 1, 1] each, in raw units.

    Rounding is monotone: as the bounds take the same path as the inputs, no input is outside them
    by even one bit.
    """

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def none(cls, white: float, channels: int) -> Scaling:
        """Raw 0 becomes 0, and white 1."""
        import torch

        return cls(torch.zeros(channels, 1, 1), torch.full((channels, 1, 1), white))

    @classmethod
    def of(cls, images: torch.Tensor) -> Scaling:
        """Per-channel mean and standard deviation (over all values, not n - 1) in float64."""
        import torch

        sums, squares = torch.zeros(2, images.shape[1], dtype=torch.float64)
        for chunk in torch.split(images, CHUNK):
            wide = chunk.double()
            sums += wide.sum((0, 2, 3))
            squares += wide.square().sum((0, 2, 3))
        count = images.numel() // images.shape[1]
        mean = sums / count
        variance = (squares / count - mean.square()).clamp(min=0)
        constant = images.amax((0, 2, 3)) == images.amin((0, 2, 3))
        std = torch.where(constant, _white(images), variance.sqrt())
        return cls(mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1))

    def to(self, device: torch.device) -> Scaling:
        """The same on a device."""
        return Scaling(self.mean.to(device), self.std.to(device))

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """Inputs float32 [n, C, H, W] of raw images [n, C, H, W]."""
        return images.sub(self.mean).div_(self.std)

    def unless_bytes(self, images: torch.Tensor) -> torch.Tensor:
        """Floats are scaled once; bytes stay as they are until a batch is taken."""
        import torch

        return images if images.dtype == torch.uint8 else self.apply(images.float())

    def bounds(self, white: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The inputs of raw 0 and of white: float64 [C] each."""
        import torch

        raw = torch.tensor([0.0, white]).view(2, 1, 1, 1).expand(2, len(self.mean), 1, 1)
        low, high = self.apply(raw).double().flatten(1)
        return low, high


def _white(images: torch.Tensor) -> float:
    """The raw value that means 1."""
    import torch

    return 255.0 if images.dtype == torch.uint8 else 1.0


def _fingerprint(splits: Splits) -> str:
    """The checksum of the whole set and the count in use, which decides which; or of the content.

    A set of 55 MB is read through once only.
    """
    if splits.checksum:
        content = f"{splits.checksum} {len(splits.train_targets)}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]
    digest = hashlib.sha256()
    for tensor in (
        splits.train_images,
        splits.train_targets,
        splits.test_images,
        splits.test_targets,
    ):
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]
