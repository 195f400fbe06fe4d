"""Data sets, their normalization, batches, augmentation, and what bad files lead to."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradexp.data import (
    AUGMENTATIONS,
    DATASETS,
    Batches,
    Data,
    Dataset,
    Splits,
    official,
    prepare,
    probe_examples,
    stream,
)
from gradexp.data.files import FileSet, data_root
from gradexp.errors import ConfigError, DataError

CPU = torch.device("cpu")
EMBEDDED = {"digits", "synthetic"}
IDX_NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


def load(name: str, **options: object) -> Data:
    dataset = DATASETS[name].factory(**options)
    return prepare(dataset, normalize=True, train_examples=None, device=CPU)


def handmade(
    train: torch.Tensor, test: torch.Tensor, classes: int = 3, targets: torch.Tensor | None = None
) -> Dataset:
    """A data set of the given images, the classes in turn."""

    def splits() -> Splits:
        labels = torch.arange(len(train)) % classes if targets is None else targets
        return Splits(train, labels, test, torch.arange(len(test)) % classes)

    return Dataset("handmade", tuple(train.shape[1:]), classes, splits)


def numbered(count: int) -> Data:
    """Examples that carry their own index, so that batches show what they took."""
    images = (torch.arange(count) / max(count, 1)).view(-1, 1, 1, 1)
    return prepare(handmade(images, images), normalize=False, train_examples=None, device=CPU)


def indices(inputs: torch.Tensor, count: int) -> list[int]:
    return [round(value) for value in (inputs.flatten() * count).tolist()]


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits")


# --- every entry ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS.names())
def test_what_an_entry_declares_is_what_loads(name: str) -> None:
    dataset = DATASETS[name].factory() if name in EMBEDDED else real(name)
    data = prepare(dataset, normalize=True, train_examples=None, device=CPU)
    for inputs, targets in (
        (data.train_inputs, data.train_targets),
        (data.test_inputs, data.test_targets),
    ):
        assert tuple(inputs.shape[1:]) == dataset.shape
        assert inputs.dtype == torch.float32
        assert targets.dtype == torch.int64
        assert torch.equal(targets.unique(), torch.arange(dataset.classes))
        assert inside(inputs, data)
    assert data.classes == dataset.classes


def real(name: str) -> Dataset:
    root = os.environ.get("GRADEXP_DATA")
    if not root:
        pytest.skip(f"GRADEXP_DATA is not set: {name} is not tested on its real files")
    files: FileSet = getattr(official, name.upper())
    if not all(Path(root, path).is_file() for path in files.checksums):
        pytest.skip(f"GRADEXP_DATA does not hold {name}")
    subset = name == "cifar10"  # the folder may hold a converted copy
    return DATASETS[name].factory(verify=not subset)


def inside(inputs: torch.Tensor, data: Data) -> bool:
    low, high = data.low.view(-1, 1, 1), data.high.view(-1, 1, 1)
    return bool(((inputs.double() >= low) & (inputs.double() <= high)).all())


def test_the_catalogue_can_be_read_without_torch() -> None:
    code = (
        "import sys\n"
        "from gradexp.data import *\n"
        "for entry in [*DATASETS, *AUGMENTATIONS]:\n"
        "    entry.factory(), entry.options, entry.help\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_entry_has_a_help_text() -> None:
    assert all(entry.help for entry in [*DATASETS, *AUGMENTATIONS])


def test_official_checksums_are_the_ones_torchvision_knows() -> None:
    from torchvision import datasets

    for files in (official.CIFAR10, official.CIFAR100):
        theirs = getattr(datasets, files.fetcher)
        listed = {
            f"{theirs.base_folder}/{name}": md5
            for name, md5 in theirs.train_list + theirs.test_list
        }
        assert files.checksums == listed


# --- embedded sets -------------------------------------------------------------------------


def test_digits_are_scikit_learns_split_evenly_in_every_class() -> None:
    from sklearn.datasets import load_digits

    splits = DATASETS["digits"].factory().load()
    both = torch.cat([splits.train_images, splits.test_images]).flatten(1).numpy()
    theirs = load_digits().data / 16
    assert sorted(map(bytes, both.astype(np.float64))) == sorted(map(bytes, theirs))
    train, test = splits.train_targets.bincount(), splits.test_targets.bincount()
    assert ((test - (train + test) / 5).abs() < 1).all()


def test_synthetic_follows_its_options() -> None:
    data = load("synthetic", classes=4, channels=3, size=5, examples=30, noise=0.0)
    assert data.train_inputs.shape == (30, 3, 5, 5)
    assert len(data.test_targets) == 6
    assert torch.equal(data.train_inputs[0], data.train_inputs[4])  # no noise: same class, same
    assert not torch.equal(data.train_inputs[0], data.train_inputs[1])
    assert torch.equal(data.train_inputs[1], data.test_inputs[1])


def test_synthetic_is_the_same_everywhere_whatever_the_global_seed() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert load("synthetic").fingerprint == "e4125d08c60cf961"
    assert torch.equal(torch.get_rng_state(), before)


# --- prepare -------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=30, deadline=None)
def test_normalization_is_that_of_plain_numpy(seed: int, as_bytes: bool) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (int(rng.integers(2, 40)), 2, 3, 4), dtype=np.uint8)
    images = torch.from_numpy(raw if as_bytes else raw / 255)
    data = prepare(handmade(images, images[:2]), normalize=True, train_examples=None, device=CPU)
    value = raw.astype(np.float64) / 255
    mean = value.mean((0, 2, 3), keepdims=True)
    std = value.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(data.train_inputs.numpy(), (value - mean) / std, atol=2e-6)
    np.testing.assert_allclose(data.test_inputs.numpy(), ((value - mean) / std)[:2], atol=2e-6)
    np.testing.assert_allclose(data.low.numpy(), (-mean / std).ravel(), rtol=1e-6)
    np.testing.assert_allclose(data.high.numpy(), ((1 - mean) / std).ravel(), rtol=1e-6)
    assert data.low.dtype == data.high.dtype == torch.float64
    assert inside(data.train_inputs, data)
    assert inside(data.test_inputs, data)


def test_a_large_set_is_normalized_as_a_whole() -> None:
    images = torch.rand(5000, 1, 2, 2, generator=torch.Generator().manual_seed(0)) ** 2
    images[4000:] /= 2
    data = prepare(handmade(images, images), normalize=True, train_examples=None, device=CPU)
    assert float(data.train_inputs.double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(data.train_inputs.double().std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_the_extreme_raw_values_reach_the_bounds_exactly() -> None:
    images = torch.randint(0, 256, (50, 3, 4, 4), generator=stream(0, "test")).to(torch.uint8)
    images[0], images[1] = 0, 255
    data = prepare(handmade(images, images), normalize=True, train_examples=None, device=CPU)
    assert torch.equal(data.train_inputs[0, :, 0, 0].double(), data.low)
    assert torch.equal(data.train_inputs[1, :, 0, 0].double(), data.high)


@pytest.mark.parametrize("value", [0.1, 26])
def test_a_constant_channel_is_centred_and_not_divided(value: float) -> None:
    dtype = torch.uint8 if value > 1 else torch.float32
    images = torch.full((3000, 1, 2, 2), value, dtype=dtype)
    data = prepare(handmade(images, images), normalize=True, train_examples=None, device=CPU)
    assert float(data.train_inputs.abs().max()) < 1e-7
    assert float(data.high - data.low) == pytest.approx(1)


def test_without_normalization_inputs_are_raw_values_in_0_1() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    data = prepare(handmade(images, images), normalize=False, train_examples=None, device=CPU)
    assert data.train_inputs.flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert (data.low.tolist(), data.high.tolist()) == ([0.0], [1.0])


def test_train_examples_takes_the_start_of_one_fixed_permutation() -> None:
    dataset = DATASETS["synthetic"].factory(examples=100)
    few, more, more_again = (
        prepare(dataset, normalize=False, train_examples=count, device=CPU)
        for count in (10, 40, 40)
    )
    everything = prepare(dataset, normalize=False, train_examples=None, device=CPU)
    assert torch.equal(few.train_inputs, more.train_inputs[:10])
    assert not torch.equal(few.train_inputs, everything.train_inputs[:10])
    assert torch.equal(more.train_inputs, more_again.train_inputs)
    assert len(few.test_targets) == len(more.test_targets) == 20
    assert few.notes == ("10 of 100 training examples",)
    assert more.fingerprint == more_again.fingerprint != few.fingerprint


def test_normalization_uses_the_chosen_training_examples_alone() -> None:
    dataset = DATASETS["synthetic"].factory(examples=100)
    data = prepare(dataset, normalize=True, train_examples=7, device=CPU)
    assert float(data.train_inputs.double().mean()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("count", [0, 101])
def test_more_training_examples_than_there_are_is_refused(count: int) -> None:
    dataset = DATASETS["synthetic"].factory(examples=100)
    with pytest.raises(ConfigError, match=f"train_examples: got {count}, but synthetic has 100"):
        prepare(dataset, normalize=True, train_examples=count, device=CPU)


@pytest.mark.parametrize("change", ["train image", "test image", "train target"])
def test_the_fingerprint_sees_one_changed_value(change: str) -> None:
    def fingerprint(changed: str) -> str:
        train, test = torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 2, 2)
        targets = torch.zeros(4, dtype=torch.int64)
        if changed == "train image":
            train[3, 0, 1, 1] = 0.5
        if changed == "test image":
            test[3, 0, 1, 1] = 0.5
        if changed == "train target":
            targets[3] = 1
        dataset = handmade(train, test, targets=targets)
        return prepare(dataset, normalize=True, train_examples=None, device=CPU).fingerprint

    assert fingerprint(change) != fingerprint("nothing") == fingerprint("nothing")


@pytest.mark.parametrize(
    ("images", "targets", "words"),
    [
        (torch.full((3, 1, 2, 2), 1.5), [0, 1, 2], r"values must lie in \[0, 1\], got 1.5 to 1.5"),
        (torch.full((3, 1, 2, 2), torch.nan), [0, 1, 2], r"values must lie in \[0, 1\]"),
        (torch.full((3, 1, 2, 2), 2), [0, 1, 2], r"values must lie in \[0, 1\], got 2 to 2"),
        (torch.zeros(3, 1, 2, 3), [0, 1, 2], "images are 1x2x3, not 1x2x2"),
        (torch.zeros(3, 1, 2, 2), [0, 1, 3], "targets must be 0 to 2, got 0 to 3"),
        (torch.zeros(3, 1, 2, 2), [0, 1], "3 images and 2 targets"),
        (torch.zeros(0, 1, 2, 2), [], "0 images and 0 targets"),
    ],
)
def test_a_data_set_that_breaks_its_promise_is_refused(
    images: torch.Tensor, targets: list[int], words: str
) -> None:
    labels = torch.tensor(targets, dtype=torch.int64)
    splits = Splits(images, labels, images, labels)
    dataset = Dataset("mine", (1, 2, 2), 3, lambda: splits)
    with pytest.raises(DataError, match=f"mine, training examples: {words}"):
        prepare(dataset, normalize=True, train_examples=None, device=CPU)


# --- the probe set -------------------------------------------------------------------------


def test_the_probe_set_is_fixed_and_grows_by_appending(digits: Data) -> None:
    inputs, targets = probe_examples(digits, 64)
    more, _ = probe_examples(digits, 128)
    assert inputs.shape == (64, 1, 8, 8)
    assert torch.equal(more[:64], inputs)
    assert targets.unique().numel() == 10
    pairs = zip(digits.train_inputs, digits.train_targets, strict=True)
    known = {bytes(row.numpy()): int(target) for row, target in pairs}
    assert [known[bytes(row.numpy())] for row in inputs] == targets.tolist()


@pytest.mark.parametrize("count", [None, 5, 9])
def test_the_probe_set_is_the_whole_training_set_when_it_has_no_more(count: int | None) -> None:
    assert indices(probe_examples(numbered(5), count)[0], 5) == [0, 1, 2, 3, 4]


# --- batches -------------------------------------------------------------------------------


def batches(data: Data, size: int, augmentation: str = "none", seed: int = 0) -> Batches:
    return Batches(data, size, AUGMENTATIONS[augmentation].factory(), seed)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_an_epoch_takes_no_example_twice(count: int, size: int, epoch: int) -> None:
    source = batches(numbered(count), size)
    used = min(size, count)
    assert source.per_epoch == count // used
    steps = range(epoch * source.per_epoch, (epoch + 1) * source.per_epoch)
    assert {source.epoch_of(step) for step in steps} == {epoch + 1}
    taken = [indices(source.batch(step)[0], count) for step in steps]
    assert {len(batch) for batch in taken} == {used}
    flat = [index for batch in taken for index in batch]
    assert len(set(flat)) == len(flat) == count // used * used
    assert set(flat) <= set(range(count))


def test_inputs_come_with_their_own_targets() -> None:
    inputs, targets = batches(numbered(30), 30).batch(4)
    assert [index % 3 for index in indices(inputs, 30)] == targets.tolist()


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.names())
def test_a_batch_depends_on_seed_and_step_alone(digits: Data, augmentation: str) -> None:
    source = batches(digits, 256, augmentation, seed=3)
    in_order = [source.batch(step) for step in range(12)]  # 5 steps per epoch
    torch.manual_seed(99)
    state = torch.get_rng_state()
    for step in (11, 0, 7, 6, 0, 3):
        fresh = batches(digits, 256, augmentation, seed=3).batch(step)
        again = source.batch(step)
        for one, two, three in zip(in_order[step], fresh, again, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, three)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_seed_or_another_epoch_is_another_order() -> None:
    orders = {
        tuple(indices(batches(numbered(50), 50, seed=seed).batch(step)[0], 50))
        for seed in (0, 1)
        for step in (0, 1)
    }
    assert len(orders) == 4


def test_augmentation_does_not_change_which_examples_come(digits: Data) -> None:
    plain, changed = batches(digits, 128), batches(digits, 128, "crop_flip")
    assert torch.equal(plain.batch(9)[1], changed.batch(9)[1])
    assert not torch.equal(plain.batch(9)[0], changed.batch(9)[0])


def test_augmentation_draws_are_new_in_every_epoch() -> None:
    image = torch.rand(1, 1, 9, 9, generator=stream(0, "test"))
    data = prepare(handmade(image, image), normalize=False, train_examples=None, device=CPU)
    source = batches(data, 1, "crop")
    assert len({bytes(source.batch(step)[0].numpy()) for step in range(20)}) > 10


def test_augmentation_draws_are_new_in_every_batch_of_an_epoch() -> None:
    images = torch.rand(1, 1, 9, 9, generator=stream(0, "test")).expand(60, 1, 9, 9)
    data = prepare(handmade(images, images), normalize=False, train_examples=None, device=CPU)
    source = batches(data, 20, "crop_flip")
    assert len({bytes(source.batch(step)[0].numpy()) for step in range(3)}) == 3


def test_crops_are_padded_with_what_raw_zero_became() -> None:
    white = torch.full((40, 2, 3, 3), 255, dtype=torch.uint8)
    white[:20, 1] = 0  # the second channel is not constant: the two channels differ in `low`
    data = prepare(handmade(white, white), normalize=True, train_examples=None, device=CPU)
    inputs, _ = batches(data, 40, "crop").batch(0)
    for channel in range(2):
        seen = inputs[:, channel].unique().double().tolist()
        assert seen == [float(data.low[channel]), float(data.high[channel])]


def test_batches_leave_the_data_alone(digits: Data) -> None:
    before = digits.train_inputs.clone()
    for name in AUGMENTATIONS.names():
        source = batches(digits, 128, name)
        for step in range(3):
            source.batch(step)[0].zero_()
    assert torch.equal(digits.train_inputs, before)


def test_streams_differ_by_each_argument_and_repeat() -> None:
    def draw(*arguments: object) -> int:
        return int(torch.randint(2**62, (1,), generator=stream(*arguments)))  # type: ignore[arg-type]

    calls = [(0, "order"), (1, "order"), (0, "augment"), (0, "order", 1), (0, "order", 1, 1)]
    calls += [(0, "order", 11)]
    assert len({draw(*call) for call in calls}) == len(calls)
    assert [draw(*call) for call in calls] == [draw(*call) for call in calls]


# --- augmentation --------------------------------------------------------------------------


def slow(name: str, image: np.ndarray, draws: list[int], low: np.ndarray, pad: int) -> np.ndarray:
    """One image [C, H, W], written out the plain way."""
    if name in {"crop", "crop_flip"}:
        channels, height, width = image.shape
        result = np.empty_like(image)
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    row, column = y + draws[0] - pad, x + draws[1] - pad
                    there = 0 <= row < height and 0 <= column < width
                    result[c, y, x] = image[c, row, column] if there else low[c]
        image = result
    if name in {"flip", "crop_flip"} and draws[-1]:
        image = image[:, :, ::-1]
    return image


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
)
@settings(max_examples=25, deadline=None)
def test_augmentation_is_that_of_a_loop_over_examples(
    name: str, seed: int, pad: int, shape: tuple[int, int, int]
) -> None:
    has_pad = any(option.name == "pad" for option in AUGMENTATIONS[name].options)
    augmentation = AUGMENTATIONS[name].factory(**({"pad": pad} if has_pad else {}))
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(6, *shape, generator=generator)
    low = torch.rand(shape[0], 1, 1, generator=generator) - 2
    draws = torch.empty(len(augmentation.ranges), 6, dtype=torch.int64)
    for row, limit in zip(draws, augmentation.ranges, strict=True):
        row.random_(0, limit, generator=generator)
    expected = [
        slow(name, image, example_draws, low.flatten().numpy(), pad)
        for image, example_draws in zip(images.numpy(), draws.T.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(augmentation.apply(images, draws, low).numpy(), expected)


def test_draws_reach_both_ends_of_their_range_evenly() -> None:
    """A single bright pixel in the middle shows each window's offset."""
    images = torch.zeros(9000, 1, 5, 5)
    images[:, :, 2, 2] = 1
    data = prepare(handmade(images, images), normalize=False, train_examples=None, device=CPU)
    augmentation = AUGMENTATIONS["crop"].factory(pad=1)
    inputs, _ = Batches(data, 9000, augmentation, 0).batch(0)
    seen = inputs.sum((0, 1))
    assert (seen[1:4, 1:4] - 1000).abs().max() < 150  # 5 standard deviations
    assert seen[1:4, 1:4].sum() == 9000


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_augmented_inputs_stay_within_the_bounds(digits: Data, name: str) -> None:
    source = batches(digits, len(digits.train_targets), name)
    assert all(inside(source.batch(step)[0], digits) for step in range(3))


# --- files ---------------------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape) + bytes(values)


def idx_files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    contents = []
    for count in (20, 10):
        contents.append(idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)))
        contents.append(idx((np.arange(count) % 10).astype(np.uint8)))
    return dict(zip(IDX_NAMES, contents, strict=True))


@pytest.fixture
def small_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole small MNIST whose checksums count as the official ones."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in idx_files().items():
        (raw / name).write_bytes(content)
    pin(monkeypatch)
    return raw


def pin(monkeypatch: pytest.MonkeyPatch) -> None:
    checksums = {
        f"MNIST/raw/{name}": hashlib.md5(content, usedforsecurity=False).hexdigest()
        for name, content in idx_files().items()
    }
    monkeypatch.setattr(official, "MNIST", FileSet("MNIST", checksums))


def cifar_batch(count: int, labels: str, classes: int = 10) -> bytes:
    data = np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)
    return pickle.dumps({"data": data, labels: [i % classes for i in range(count)]}, protocol=2)


def write_cifar(root: Path, files: FileSet, labels: str) -> None:
    for count, path in enumerate(files.checksums, start=2):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(cifar_batch(count, labels))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)


def test_idx_files_are_read_as_torchvision_reads_them(small_mnist: Path) -> None:
    from torchvision.datasets import MNIST

    root = small_mnist.parent.parent
    splits = DATASETS["mnist"].factory(root=str(root)).load()
    for train, images, targets in (
        (True, splits.train_images, splits.train_targets),
        (False, splits.test_images, splits.test_targets),
    ):
        theirs = MNIST(root, train=train)
        assert torch.equal(images.squeeze(1), theirs.data)
        assert torch.equal(targets, theirs.targets)
    assert "a subset: 20 training and 10 test examples" in splits.note


@pytest.mark.parametrize(("name", "labels"), [("cifar10", "labels"), ("cifar100", "fine_labels")])
def test_cifar_batches_are_read_in_channel_order(tmp_path: Path, name: str, labels: str) -> None:
    files: FileSet = getattr(official, name.upper())
    write_cifar(tmp_path, files, labels)
    splits = DATASETS[name].factory(root=str(tmp_path), verify=False).load()
    *train, test = [
        pickle.loads((tmp_path / path).read_bytes())  # noqa: S301  written by this test
        for path in files.checksums
    ]
    rows = np.concatenate([batch["data"] for batch in train])
    np.testing.assert_array_equal(splits.train_images.flatten(1).numpy(), rows)
    np.testing.assert_array_equal(splits.test_images[:, 2].flatten(1), test["data"][:, 2048:])
    assert splits.train_targets.tolist() == [label for batch in train for label in batch[labels]]
    assert splits.test_targets.tolist() == test[labels]


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_arrays_pickled_by_old_and_by_new_numpy_are_read(tmp_path: Path, module: bytes) -> None:
    """NumPy 2 moved the function that a pickled array names; the official files name the old."""
    write_cifar(tmp_path, official.CIFAR100, "fine_labels")
    path = tmp_path / "cifar-100-python" / "test"
    content, found = re.subn(rb"numpy\._?core", module, path.read_bytes())
    assert found
    path.write_bytes(content)
    splits = DATASETS["cifar100"].factory(root=str(tmp_path), verify=False).load()
    assert splits.test_images.shape == (3, 3, 32, 32)


@pytest.mark.parametrize("name", IDX_NAMES)
def test_the_fingerprint_of_files_sees_what_is_used_of_them(small_mnist: Path, name: str) -> None:
    def fingerprint(count: int | None, *, verify: bool = True) -> str:
        dataset = DATASETS["mnist"].factory(root=str(small_mnist.parent.parent), verify=verify)
        return prepare(dataset, normalize=True, train_examples=count, device=CPU).fingerprint

    whole, part = fingerprint(None), fingerprint(5)
    assert whole == fingerprint(None, verify=False) != part == fingerprint(5)
    content = bytearray((small_mnist / name).read_bytes())
    content[-1] ^= 1
    (small_mnist / name).write_bytes(content)
    assert fingerprint(None, verify=False) != whole
    assert fingerprint(5, verify=False) != part


@pytest.mark.parametrize("name", IDX_NAMES)
def test_a_wrong_checksum_names_the_file_and_the_ways_out(small_mnist: Path, name: str) -> None:
    dataset = DATASETS["mnist"].factory(root=str(small_mnist.parent.parent))
    assert dataset.load().train_images.shape == (20, 1, 28, 28)
    content = bytearray((small_mnist / name).read_bytes())
    content[-1] ^= 1
    (small_mnist / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        dataset.load()
    message = str(caught.value)
    assert message.startswith(str(small_mnist / name))
    assert "Delete it" in message
    assert "verify: false" in message
    unverified = DATASETS["mnist"].factory(root=str(small_mnist.parent.parent), verify=False)
    assert unverified.load().train_images.shape == (20, 1, 28, 28)


def test_the_official_mnist_passes_and_one_changed_byte_does_not(tmp_path: Path) -> None:
    real("mnist")
    here, raw = Path(os.environ["GRADEXP_DATA"], "MNIST", "raw"), tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in IDX_NAMES[:3]:
        (raw / name).symlink_to(here / name)
    content = bytearray((here / IDX_NAMES[3]).read_bytes())
    (raw / IDX_NAMES[3]).write_bytes(content)
    dataset = DATASETS["mnist"].factory(root=str(tmp_path))
    assert dataset.load().note == ""
    content[-1] ^= 1
    (raw / IDX_NAMES[3]).write_bytes(content)
    with pytest.raises(DataError, match=IDX_NAMES[3]):
        dataset.load()


def test_a_subset_of_cifar10_is_refused_unless_asked_for(tmp_path: Path) -> None:
    write_cifar(tmp_path, official.CIFAR10, "labels")
    with pytest.raises(DataError, match="data_batch_1: is not the official file"):
        DATASETS["cifar10"].factory(root=str(tmp_path)).load()
    splits = DATASETS["cifar10"].factory(root=str(tmp_path), verify=False).load()
    assert splits.note == (
        "a subset: 20 training and 7 test examples where the official set has 50,000 and 10,000"
    )


@given(st.integers(0, 20 * 784 + 15), st.sampled_from(IDX_NAMES))
@settings(max_examples=40, deadline=None)
def test_a_truncated_idx_file_is_named(
    tmp_path_factory: pytest.TempPathFactory, length: int, name: str
) -> None:
    root = tmp_path_factory.mktemp("idx")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for each, content in idx_files().items():
        (raw / each).write_bytes(content)
    (raw / name).write_bytes(idx_files()[name][: length % len(idx_files()[name])])
    with pytest.raises(DataError, match=name):
        DATASETS["mnist"].factory(root=str(root), verify=False).load()


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_truncated_cifar_batch_is_named(
    tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    root = tmp_path_factory.mktemp("cifar")
    write_cifar(root, official.CIFAR10, "labels")
    path = root / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[: length % path.stat().st_size])
    with pytest.raises(DataError, match="data_batch_3"):
        DATASETS["cifar10"].factory(root=str(root), verify=False).load()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": np.zeros((2, 100), np.uint8), "fine_labels": [0, 1]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": ["a", "b"]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}),
        pickle.dumps({"data": np.zeros((2, 3072)), "fine_labels": [0, 1]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0]}),
    ],
)
def test_a_file_that_is_no_cifar_batch_is_named(tmp_path: Path, content: bytes) -> None:
    write_cifar(tmp_path, official.CIFAR100, "fine_labels")
    (tmp_path / "cifar-100-python" / "test").write_bytes(content)
    with pytest.raises(DataError, match="cifar-100-python/test"):
        DATASETS["cifar100"].factory(root=str(tmp_path), verify=False).load()


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    class Intruder:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.mkdir, (tmp_path / "intruded",)  # type: ignore[return-value]

    write_cifar(tmp_path, official.CIFAR100, "fine_labels")
    (tmp_path / "cifar-100-python" / "test").write_bytes(pickle.dumps(Intruder()))
    with pytest.raises(DataError, match="refers to pathlib"):
        DATASETS["cifar100"].factory(root=str(tmp_path), verify=False).load()
    assert not (tmp_path / "intruded").exists()


def test_other_sizes_than_declared_are_refused(small_mnist: Path) -> None:
    (small_mnist / IDX_NAMES[0]).write_bytes(idx(np.zeros((20, 14, 14), np.uint8)))
    dataset = DATASETS["mnist"].factory(root=str(small_mnist.parent.parent), verify=False)
    with pytest.raises(DataError, match="images are 1x14x14, not 1x28x28"):
        prepare(dataset, normalize=True, train_examples=None, device=CPU)


def test_an_idx_file_of_another_type_is_named(small_mnist: Path) -> None:
    content = bytearray((small_mnist / IDX_NAMES[2]).read_bytes())
    content[2] = 0x0D  # float32
    (small_mnist / IDX_NAMES[2]).write_bytes(content)
    dataset = DATASETS["mnist"].factory(root=str(small_mnist.parent.parent), verify=False)
    with pytest.raises(DataError, match=f"{IDX_NAMES[2]}: is damaged or no idx file"):
        dataset.load()


def test_as_many_labels_as_images(small_mnist: Path) -> None:
    (small_mnist / IDX_NAMES[1]).write_bytes(idx(np.zeros(19, np.uint8)))
    dataset = DATASETS["mnist"].factory(root=str(small_mnist.parent.parent), verify=False)
    with pytest.raises(DataError, match="train-labels-idx1-ubyte: has 19 labels for 20 images"):
        dataset.load()


# --- where data is found, and its download ---------------------------------------------------


def test_data_is_found_at_root_else_the_environment_else_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRADEXP_DATA", "/from/environment")
    assert data_root("/from/root") == Path("/from/root")
    assert data_root(None) == Path("/from/environment")
    assert data_root("~/sets") == Path.home() / "sets"
    monkeypatch.setenv("GRADEXP_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/from/cache")
    monkeypatch.setenv("HOME", "/from/home")
    assert data_root(None).parts[-2:] == ("gradexp", "data")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_without_files_and_network_the_error_says_what_to_put_where(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "not" / "there"
    with pytest.raises(DataError) as caught:
        DATASETS[name].factory(root=str(root)).load()
    message = str(caught.value)
    files: FileSet = getattr(official, name.upper())
    assert "no route to host" in message
    assert "`root`" in message
    assert "GRADEXP_DATA" in message
    assert message.startswith(files.fetcher)
    assert all(f"  {root / path}\n" in message for path in files.checksums)
    assert capsys.readouterr().out == ""
    assert not list(root.rglob("*-ubyte"))
    assert not list(root.glob(".download-*"))


@pytest.mark.usefixtures("no_network")
def test_a_root_that_cannot_be_made_is_an_error_for_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be downloaded"):
        DATASETS["mnist"].factory(root=str(tmp_path / "file")).load()


def test_a_download_fills_in_what_is_missing_and_keeps_stdout_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(_url: str, download_root: str, filename: str, md5: str) -> None:
        assert md5
        print("Extracting", filename)  # noqa: T201  as torchvision does
        Path(download_root, filename).write_bytes(b"archive")
        name = filename.removesuffix(".gz")
        Path(download_root, name).write_bytes(idx_files()[name])

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fake)
    pin(monkeypatch)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / IDX_NAMES[0]).write_bytes(idx_files()[IDX_NAMES[0]])
    inode = (raw / IDX_NAMES[0]).stat().st_ino
    assert len(DATASETS["mnist"].factory(root=str(tmp_path)).load().train_targets) == 20
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in raw.iterdir()) == sorted(IDX_NAMES)
    assert (raw / IDX_NAMES[0]).stat().st_ino == inode
    monkeypatch.undo()
    pin(monkeypatch)
    assert len(DATASETS["mnist"].factory(root=str(tmp_path)).load().train_targets) == 20


@pytest.mark.usefixtures("no_network")
def test_an_unverified_copy_is_not_filled_up_with_official_files(small_mnist: Path) -> None:
    (small_mnist / IDX_NAMES[2]).unlink()
    dataset = DATASETS["mnist"].factory(root=str(small_mnist.parent.parent), verify=False)
    with pytest.raises(DataError, match="never mixed") as caught:
        dataset.load()
    assert str(small_mnist / IDX_NAMES[2]) in str(caught.value)
    assert str(small_mnist / IDX_NAMES[0]) not in str(caught.value)
