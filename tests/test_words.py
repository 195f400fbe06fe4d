"""Numbers as words, on both sides of every threshold."""

from __future__ import annotations

import math

import pytest

from gradexp.analysis import counted
from gradexp.report.words import number, number_if_any, percent, whole


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (0.000999, "1.0e-3"),
        (0.00099, "9.9e-4"),
        (0.001, "0.001"),
        (-0.001, "-0.001"),
        (0.0012344, "0.00123"),
        (0.5, "0.5"),
        (-0.12345, "-0.123"),
        (1.0, "1"),
        (3.14159, "3.14"),
        (99.96, "100"),
        (123.4, "123"),
        (999.4, "999"),
        (999.6, "1000"),
        (-999.6, "-1000"),
        (1000.0, "1000"),
        (1234.4, "1234"),
        (-9999.0, "-9999"),
        (10_000.0, "1.0e+4"),
        (-12_345.0, "-1.2e+4"),
        (1e9, "1.0e+9"),
        (1e10, "1.0e+10"),
        (1e100, "1.0e+100"),
        (1e-9, "1.0e-9"),
        (2.5e-10, "2.5e-10"),
        (1e-100, "1.0e-100"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
    ],
)
def test_a_number_is_short_and_keeps_the_digits_that_matter(value: float, expected: str) -> None:
    assert number(value) == expected
    assert number_if_any(value) == expected


def test_nan_is_shown_where_it_was_measured_and_a_dash_where_there_is_none() -> None:
    assert number(math.nan) == "nan"
    assert [words(math.nan) for words in (number_if_any, percent, whole)] == ["-"] * 3


def test_shares_and_whole_numbers() -> None:
    assert [percent(value) for value in (0.0, 0.12345, 1.0)] == ["0.0 %", "12.3 %", "100.0 %"]
    assert [whole(value) for value in (0.0, 3.0, 1024.0)] == ["0", "3", "1024"]


def test_one_of_a_thing_has_no_s() -> None:
    assert [counted(count, "run") for count in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
