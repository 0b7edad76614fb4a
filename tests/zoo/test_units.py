"""Counts as text, read and written; months."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.units import format_count, parse_count, parse_month


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("200k", 200_000),
        ("1M", 10**6),
        ("1.5g", 1_500_000_000),
        ("2B", 2 * 10**9),
        (" 2_000,000 ", 2_000_000),
        ("7", 7),
    ],
)
def test_a_count_is_read(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "0", "0.1", "-1", "1e6", "k", "1 kB", "many", "1T", "inf"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a count above 0; write 200k, 1M or 4096"):
        parse_count(text)


@given(st.integers(1, 10**11))
def test_what_is_written_is_read_in_three_digits(count: int) -> None:
    assert parse_count(format_count(count)) == pytest.approx(count, rel=0.006)


@pytest.mark.parametrize("text", ["2025-06", "2019-10", "1999-12"])
def test_a_month_is_read(text: str) -> None:
    assert parse_month(text) == text


@pytest.mark.parametrize("text", ["", "2025", "2025-6", "2025-06 ", "2025-13", "2025-06-01", "06-2025", "June 2025"])
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a month; write 2025-06"):
        parse_month(text)
