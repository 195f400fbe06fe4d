"""The published image sets, in torchvision's layout on disk."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradexp.data.catalogue import DATASETS, Dataset, Splits
from gradexp.data.files import FileSet, data_root
from gradexp.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import torch

    Examples = tuple[torch.Tensor, torch.Tensor]
    Reader = Callable[[Path], tuple[Examples, Examples]]

REPLACE_IT = "Put a whole copy in its place, or delete it and set `verify: true` to download it"


def _idx_files(name: str, *checksums: str) -> FileSet:
    files = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    paths = [f"{name}/raw/{file}" for file in files]
    return FileSet(name, dict(zip(paths, checksums, strict=True)))


MNIST = _idx_files(
    "MNIST",
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
FASHION_MNIST = _idx_files(
    "FashionMNIST",
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
CIFAR10 = FileSet(
    "CIFAR10",
    {
        "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
        "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
        "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    },
)
CIFAR100 = FileSet(
    "CIFAR100",
    {
        "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
        "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
)


@DATASETS.register("mnist", source="LeCun et al. 1998")
def mnist(*, root: str | None = None, verify: bool = True) -> Dataset:
    """28x28 handwritten digits: 60,000 to train, 10,000 to test."""
    read = partial(_read_idx_files, MNIST)
    load = partial(_load, MNIST, read, (60_000, 10_000), root, verify)
    return Dataset("mnist", (1, 28, 28), 10, load)


@DATASETS.register("fashion_mnist", source="Xiao et al. 2017")
def fashion_mnist(*, root: str | None = None, verify: bool = True) -> Dataset:
    """28x28 pictures of clothing: 60,000 to train, 10,000 to test."""
    read = partial(_read_idx_files, FASHION_MNIST)
    load = partial(_load, FASHION_MNIST, read, (60_000, 10_000), root, verify)
    return Dataset("fashion_mnist", (1, 28, 28), 10, load)


@DATASETS.register("cifar10", source="Krizhevsky 2009")
def cifar10(*, root: str | None = None, verify: bool = True) -> Dataset:
    """32x32 colour pictures of 10 classes: 50,000 to train, 10,000 to test."""
    read = partial(_read_batches, CIFAR10, "labels")
    load = partial(_load, CIFAR10, read, (50_000, 10_000), root, verify)
    return Dataset("cifar10", (3, 32, 32), 10, load)


@DATASETS.register("cifar100", source="Krizhevsky 2009")
def cifar100(*, root: str | None = None, verify: bool = True) -> Dataset:
    """32x32 colour pictures of 100 classes: 50,000 to train, 10,000 to test."""
    read = partial(_read_batches, CIFAR100, "fine_labels")
    load = partial(_load, CIFAR100, read, (50_000, 10_000), root, verify)
    return Dataset("cifar100", (3, 32, 32), 100, load)


def _load(
    files: FileSet, read: Reader, official: tuple[int, int], root: str | None, verify: bool
) -> Splits:
    """Both splits from disk; `official` are the published counts of examples."""
    folder = data_root(root)
    checksum = files.ensure(folder, verify=verify)
    train, test = read(folder)
    note = _note((len(train[1]), len(test[1])), official)
    return Splits(*train, *test, note=note, checksum=checksum)


def _note(found: tuple[int, int], official: tuple[int, int]) -> str:
    if found == official:
        return ""
    return (
        f"a subset: {found[0]:,} training and {found[1]:,} test examples where the official set "
        f"has {official[0]:,} and {official[1]:,}"
    )


def _read_idx_files(files: FileSet, root: Path) -> tuple[Examples, Examples]:
    train_images, train_labels, test_images, test_labels = (root / path for path in files.checksums)
    return _read_idx_pair(train_images, train_labels), _read_idx_pair(test_images, test_labels)


def _read_idx_pair(images: Path, labels: Path) -> Examples:
    inputs, targets = _read_idx(images, 3).unsqueeze(1), _read_idx(labels, 1).long()
    if len(inputs) != len(targets):
        raise DataError(f"{labels}: has {len(targets)} labels for {len(inputs)} images")
    return inputs, targets


def _read_idx(path: Path, dimensions: int) -> torch.Tensor:
    import numpy as np
    import torch

    try:
        return torch.from_numpy(_parse_idx(np.fromfile(path, dtype=np.uint8), dimensions))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (struct.error, ValueError) as error:
        raise DataError(f"{path}: is damaged or no idx file ({error}). {REPLACE_IT}") from error


def _parse_idx(content: np.ndarray, dimensions: int) -> np.ndarray:
    """The idx format for bytes: a magic number and the sizes (big endian), then the values."""
    magic, *sizes = struct.unpack_from(f">{1 + dimensions}I", content.data)
    if magic != 0x0800 + dimensions:
        raise ValueError(f"magic number {magic}, expected {0x0800 + dimensions}")
    return content[4 * (1 + dimensions) :].reshape(sizes)


def _read_batches(files: FileSet, labels: str, root: Path) -> tuple[Examples, Examples]:
    import torch

    *train, test = (_read_batch(root / path, labels) for path in files.checksums)
    images, targets = zip(*train, strict=True)
    return (torch.cat(images), torch.cat(targets)), test


def _read_batch(path: Path, labels: str) -> Examples:
    """One CIFAR batch: a pickled dictionary of images (uint8 rows of 3x32x32) and labels."""
    import torch

    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="latin1").load()
        images = torch.from_numpy(batch["data"]).reshape(-1, 3, 32, 32)
        targets = torch.tensor(batch[labels], dtype=torch.int64)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise DataError(f"{path}: is damaged or no CIFAR batch ({error}). {REPLACE_IT}") from error
    if targets.shape != images.shape[:1] or images.dtype != torch.uint8:
        raise DataError(
            f"{path}: has {targets.numel()} labels for {len(images)} images of {images.dtype}; "
            f"there must be one label per image, and images must be uint8. {REPLACE_IT}"
        )
    return images, targets


class _ArrayUnpickler(pickle.Unpickler):  # the files come from elsewhere: they may not run code
    """Reads numbers, text, containers and NumPy arrays, and nothing else."""

    ALLOWED = (
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.ndarray",
        "numpy.dtype",
        "_codecs.encode",
    )

    def find_class(self, module: str, name: str) -> Any:
        """A callable that rebuilds an array; any other is refused."""
        if f"{module}.{name}" not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)
