"""Data sets held as tensors on the device, seeded batches, augmentation on the device."""

from gradexp.data import official as _official  # noqa: F401  importing it registers its data sets
from gradexp.data.augmentation import AUGMENTATIONS, Augmentation
from gradexp.data.batches import Batches
from gradexp.data.catalogue import DATASETS, Dataset, Splits
from gradexp.data.prepared import Data, prepare, probe_examples
from gradexp.data.streams import stream

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augmentation",
    "Batches",
    "Data",
    "Dataset",
    "Splits",
    "prepare",
    "probe_examples",
    "stream",
]
