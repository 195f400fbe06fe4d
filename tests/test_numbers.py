"""Norms and moments: right from 1e-38 to 1e38, and honest about what is not a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gradexp.optim import rows as numbers
from gradexp.optim.rows import Rows, row_norms
from gradexp.probes.numbers import Moments

Measure = Callable[[list[torch.Tensor]], torch.Tensor]


def norms(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The norm of each tensor, laid into rows as a net's parameters are."""
    rows = Rows([tensor.numel() for tensor in tensors])
    matrix = torch.zeros(int(rows.first[-1]), rows.length)
    for index, tensor in enumerate(tensors):
        rows.place(matrix, index, tensor.shape).copy_(tensor)
    squares = row_norms(matrix).double().numpy() ** 2
    return torch.from_numpy(np.sqrt(np.add.reduceat(squares, rows.first[:-1])))


def as_elsewhere(row_norms: Callable[[torch.Tensor], torch.Tensor]) -> Measure:
    """The norms as another kind of device would measure them."""

    def measured(tensors: list[torch.Tensor]) -> torch.Tensor:
        with patch.dict(numbers.ROW_NORMS, cpu=row_norms):
            return norms(tensors)

    return measured


ALL_NORMS = [
    norms,
    as_elsewhere(numbers.double_row_norms),
    as_elsewhere(numbers.scaled_row_norms),
]
CPU = torch.device("cpu")
NORMAL = float(np.finfo(np.float32).tiny)
scales = st.sampled_from(
    [1e-38, 1e-30, 1e-23, 1e-19, 1e-15, 1e-5, 1.0, 1e8, 1e17, 1e19, 1e25, 1e36]
)
entries = arrays.arrays(
    np.float32,
    arrays.array_shapes(max_dims=3, max_side=6),
    elements=st.floats(-2, 2, width=32, allow_subnormal=False),
)


def exact(values: np.ndarray) -> float:
    """The norm by Python's own arithmetic: no square leaves the range."""
    return math.hypot(*values.astype(np.float64).ravel().tolist())


@pytest.mark.parametrize("function", ALL_NORMS)
@settings(deadline=None, derandomize=True)
@given(tensors=st.lists(st.tuples(entries, scales), min_size=1, max_size=5))
def test_norms_of_any_size(function: Measure, tensors: list[tuple[np.ndarray, float]]) -> None:
    values = [(array * np.float32(scale)).astype(np.float32) for array, scale in tensors]
    values = [np.where(np.abs(one) < NORMAL, np.float32(0), one) for one in values]
    measured = function([torch.from_numpy(one) for one in values])
    for got, one in zip(measured.tolist(), values, strict=True):
        assert got == pytest.approx(exact(one), rel=1e-5, abs=0)


@pytest.mark.parametrize("entry", [1e-30, 1.2e-38, 1e25, 3e38, 1e-19, 1e-20, 1e18, 2e19])
@pytest.mark.parametrize("count", [1, 1000])
def test_entries_whose_squares_leave_the_range(entry: float, count: int) -> None:
    """Beside a tensor of ordinary size, which must not decide for the others."""
    tensor = torch.full((count,), entry)
    expected = float(tensor[0]) * math.sqrt(count)
    ordinary, measured, zero = norms([torch.ones(4), tensor, torch.zeros(3)]).tolist()
    assert (ordinary, zero) == (2.0, 0.0)
    assert measured == pytest.approx(expected, rel=1e-6)


def test_what_is_not_finite_stays_so_and_alone() -> None:
    nan, inf = torch.tensor([1.0, math.nan]), torch.tensor([1.0, -math.inf])
    both = torch.tensor([math.inf, math.nan])
    measured = norms([nan, torch.ones(4), inf, both, torch.full((1,), 1e-30)]).tolist()
    assert math.isnan(measured[0])
    assert measured[1] == 2.0
    assert measured[2] == math.inf
    assert not math.isfinite(measured[3])
    assert measured[4] == pytest.approx(1e-30, rel=1e-6)


def test_large_tensors_do_not_drift() -> None:
    """A running float32 sum of a million equal squares is off by 4e-4."""
    tensor = torch.full((1_000_000,), 0.1)
    assert norms([tensor])[0].item() == pytest.approx(float(tensor[0]) * 1000, rel=1e-5)
    noise = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    assert norms([noise])[0].item() == pytest.approx(noise.double().norm().item(), rel=3e-6)


def test_memory_layout_does_not_matter() -> None:
    tensor = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    last = tensor.to(memory_format=torch.channels_last)
    assert norms([last])[0].item() == pytest.approx(tensor.double().norm().item(), rel=1e-6)
    assert norms([tensor.transpose(0, 3)])[0].item() == pytest.approx(
        tensor.double().norm().item(), rel=1e-6
    )


@settings(deadline=None, derandomize=True)
@given(
    batches=st.lists(entries, min_size=1, max_size=5),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    offset=st.sampled_from([0.0, 1.0, 1e6]),
)
def test_moments_over_batches(batches: list[np.ndarray], scale: float, offset: float) -> None:
    values = [(one * np.float32(scale) + np.float32(offset)).astype(np.float32) for one in batches]
    moments = Moments(2, CPU)
    for one in values:
        flat = torch.from_numpy(one).reshape(1, len(one), -1)
        moments.add(torch.cat((flat, 3 * flat)))
    everything = np.concatenate([one.ravel() for one in values]).astype(np.float64)
    rounding = 1e-14 * np.abs(everything).max()
    assert moments.count == everything.size
    for factor, mean, std in zip((1, 3), moments.mean.tolist(), moments.std.tolist(), strict=True):
        exact_values = (np.float32(factor) * everything.astype(np.float32)).astype(np.float64)
        wanted = exact_values.std()
        assert mean == pytest.approx(exact_values.mean(), abs=1e-6 * wanted + factor * rounding)
        assert std == pytest.approx(wanted, rel=1e-6, abs=factor * rounding)


@pytest.mark.parametrize("count", [3, 700, 100_000])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-30, 1e30, 123.456])
def test_equal_values_have_no_deviation_at_all(value: float, count: int) -> None:
    moments = Moments(1, CPU)
    for examples in (3, 7, 1):
        moments.add(torch.full((1, examples, count), value))
    assert float(moments.std) == 0.0
    assert float(moments.mean) == float(torch.tensor(value))


def test_a_series_beside_others_keeps_its_own_deviation() -> None:
    """Collapsed, ordinary, far from 0, and tiny: all of them in one batch, in float64."""
    noise = torch.randn(4, 8, 100, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.0, 1.0, 1e-3, 1e-33]).view(4, 1, 1)
    offset = torch.tensor([0.1, 0.0, 1e3, 0.0]).view(4, 1, 1)
    values = noise * scale + offset
    moments = Moments(4, CPU)
    moments.add(values)
    wanted = values.double().flatten(1)
    assert moments.std.tolist() == pytest.approx(wanted.std(1, correction=0).tolist(), rel=1e-6)
    assert moments.mean.tolist() == pytest.approx(wanted.mean(1).tolist(), rel=1e-6)
    assert moments.std[0] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_moments_of_what_is_not_finite(bad: float) -> None:
    moments = Moments(1, CPU)
    moments.add(torch.tensor([[[1.0, bad]]]))
    moments.add(torch.ones(1, 1, 3))
    assert not math.isfinite(float(moments.mean))
    assert not math.isfinite(float(moments.std))
