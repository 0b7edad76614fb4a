"""Counting: the formulas against counting one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.costs import BLOCK, CacheSpec, dense_pairs, linear_flops, visible_pairs, window_blocks

LENGTHS = st.integers(0, 40)
WINDOWS = st.none() | st.integers(1, 50)


@given(past=LENGTHS, new=LENGTHS, window=WINDOWS)
def test_visible_pairs_are_the_pairs_that_see_each_other(past: int, new: int, window: int | None) -> None:
    """Token i sees min(i + 1, window) keys, itself included."""
    reach = past + new if window is None else window
    seen = [(q, k) for q in range(past, past + new) for k in range(past + new) if 0 <= q - k < reach]
    assert visible_pairs(past, new, window) == len(seen)
    assert visible_pairs(past, new, window) == sum(min(i + 1, reach) for i in range(past, past + new))


@given(past=LENGTHS, new=st.integers(1, 40), window=WINDOWS)
def test_dense_pairs_hold_every_visible_one(past: int, new: int, window: int | None) -> None:
    assert dense_pairs(past, new, window) >= visible_pairs(past, new, window)
    assert dense_pairs(past, 1, window) == visible_pairs(past, 1, window)


@given(past=LENGTHS, new=st.integers(1, 1200), window=st.integers(1, 700))
def test_bands_hold_every_visible_pair_once(past: int, new: int, window: int) -> None:
    """The blocks are the queries in order; each is handed every new key that a window of its reaches."""
    past, end = min(past, window), 0
    for start, stop, first in window_blocks(past, new, window):
        assert start == end < stop <= start + BLOCK
        assert first <= max(0, past + start + 1 - window)
        assert first == 0 or first >= past
        end = stop
    assert end == new


@given(window=st.integers(1, 2000), new=st.integers(1, 20_000))
def test_a_long_pass_costs_what_its_windows_cost(window: int, new: int) -> None:
    """Not the square: at most twice the pairs that are seen, and what the first window leaves unseen."""
    assert dense_pairs(0, new, window) <= 2 * visible_pairs(0, new, window) + window * min(new, window)


@given(past=LENGTHS, parts=st.lists(st.integers(0, 12), max_size=5), window=WINDOWS)
def test_visible_pairs_add_up_over_chunks(past: int, parts: list[int], window: int | None) -> None:
    chunks = sum(visible_pairs(past + sum(parts[:i]), part, window) for i, part in enumerate(parts))
    assert chunks == visible_pairs(past, sum(parts), window)


def test_a_cache_spec_counts_elements_and_tokens() -> None:
    stored = CacheSpec(per_token=(("k", (2, 8)), ("v", (2, 4))), window=16)
    assert stored.elements() == 24
    assert [stored.tokens(context) for context in (1, 15, 16, 17, 1000)] == [1, 15, 16, 16, 16]
    assert CacheSpec(per_token=stored.per_token).tokens(1000) == 1000


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5)])
def test_a_product_costs_two_flops_a_multiply_add(shape: tuple[int, int, int]) -> None:
    tokens, fan_in, fan_out = shape
    assert linear_flops(tokens, fan_in, fan_out) == sum(2 for _ in range(tokens * fan_in * fan_out))
